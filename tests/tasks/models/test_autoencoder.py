"""Autoencoders: roles, initialization and forward pass."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import ADAM_LIKE, STANDARD, Rules
from tasks.models.autoencoder import VAE, AutoEncoder, Inference
from tests.tasks import families
from tests.tasks.families import KEY

SHAPE = (2, 3, 1)
PIXELS = 6
BASES = [
    AutoEncoder(width=8, depth=2, bottleneck=2, base_width=8),
    VAE(width=8, depth=2, code=3, base_width=8),
]
each_model = pytest.mark.parametrize("model", BASES, ids=["autoencoder", "vae"])


@pytest.fixture(scope="module")
def images():
    """Images of very different scales `[4, 2, 3, 1]`."""
    rng = np.random.default_rng(0)
    scales = np.array([0.1, 1.0, 3.0, 10.0]).reshape(4, 1, 1, 1)
    return jnp.asarray(scales * rng.normal(size=(4, *SHAPE)), jnp.float32)


def randomized(model):
    return families.randomized(model, SHAPE, PIXELS, 0.25)


ENCODER = {
    "encoder_0/kernel": ("pixels -> width", "input", (6, 20), (6, 8), 1.0),
    "encoder_0/bias": ("-> width", "vector", (20,), (8,), 1.0),
    "encoder_1/kernel": ("width -> width", "hidden", (20, 20), (8, 8), 2.5),
    "encoder_1/bias": ("-> width", "vector", (20,), (8,), 1.0),
}
DECODER = {
    "decoder_0/bias": ("-> width", "vector", (20,), (8,), 1.0),
    "decoder_1/kernel": ("width -> width", "hidden", (20, 20), (8, 8), 2.5),
    "decoder_1/bias": ("-> width", "vector", (20,), (8,), 1.0),
    "readout/kernel": ("width -> pixels", "output", (20, 6), (8, 6), 2.5),
    "readout/bias": ("-> pixels", "vector", (6,), (6,), 1.0),
}
TABLES = [
    ENCODER
    | {
        "latent/kernel": ("width -> latent", "hidden", (20, 10), (8, 4), 2.5),
        "latent/bias": ("-> latent", "vector", (10,), (4,), 1.0),
        "decoder_0/kernel": ("latent -> width", "hidden", (10, 20), (4, 8), 2.5),
    }
    | DECODER,
    ENCODER
    | {
        "mean/kernel": ("width -> code", "output", (20, 3), (8, 3), 2.5),
        "mean/bias": ("-> code", "vector", (3,), (3,), 1.0),
        "log_variance/kernel": ("width -> code", "output", (20, 3), (8, 3), 2.5),
        "log_variance/bias": ("-> code", "vector", (3,), (3,), 1.0),
        "decoder_0/kernel": ("code -> width", "input", (3, 20), (3, 8), 1.0),
    }
    | DECODER,
]


@pytest.mark.parametrize(
    ("model", "table"),
    [*zip(BASES, TABLES, strict=True)],
    ids=["autoencoder", "vae"],
)
def test_every_parameter_has_its_role(model, table):
    specs = model.at_width(20).specs(SHAPE, PIXELS)
    assert families.described(specs) == table


@each_model
def test_it_starts_at_nothing_whatever_the_key(model, images):
    model = model.at_width(24)

    def start(key):
        params = model.init(key, SHAPE, PIXELS)
        result = model.apply(params, images, PIXELS, key)
        if isinstance(result, Inference):
            return *result, result.divergence()
        return (result,)

    program = jax.jit(start)
    for seed in (0, 1):
        results = program(jax.random.key(seed))
        assert results[0].shape == (4, PIXELS)
        assert not any(np.asarray(x).any() for x in results)
    assert len(results) == (1 if model.at_width(8) == BASES[0] else 4)


def loss_and_gradient(model):
    def loss(params, images):
        result = model.apply(params, images, PIXELS, KEY)
        return sum(jnp.mean((x - 0.5) ** 2) for x in jax.tree.leaves(result))

    return jax.jit(jax.value_and_grad(loss))


@each_model
def test_at_the_base_shape_all_parametrizations_are_one_bit_for_bit(model, images):
    away = randomized(model)
    # Equal programs compute equal bits.
    starts, programs = set(), set()
    for rules in Rules:
        same = model.with_rules(rules)
        init = jax.jit(lambda key, same=same: same.init(key, SHAPE, PIXELS))
        starts.add(init.lower(KEY).as_text())
        lowered = loss_and_gradient(same).lower(away, images)
        programs.add(lowered.as_text())
    assert len(Rules) == 5 and len(starts) == len(programs) == 1
    loss, gradient = lowered.compile()(away, images)
    assert float(loss) > 0
    assert all(np.asarray(x).any() for x in jax.tree.leaves(gradient))

    wide = model.at_width(16)
    away = randomized(wide)
    standard, mup = (
        loss_and_gradient(wide.with_rules(rules))(away, images)
        for rules in (STANDARD, ADAM_LIKE)
    )
    assert float(standard[0]) != float(mup[0])
    differ = jax.tree.map(lambda x, y: not np.array_equal(x, y), standard[1], mup[1])
    assert differ["readout"]["kernel"] and differ["encoder_0"]["kernel"]


@each_model
def test_the_start_has_the_deviations_of_the_roles(model):
    model = dataclasses.replace(model, width=256, depth=2)
    params = jax.jit(lambda: model.init(jax.random.key(1), SHAPE, PIXELS))()
    zeros = {"readout"} | ({"mean", "log_variance"} if "mean" in params else set())
    for name, layer in params.items():
        kernel = np.asarray(layer["kernel"], np.float64)
        assert not np.asarray(layer["bias"]).any()
        if name in zeros:
            assert not kernel.any()
            continue
        scaled = kernel * math.sqrt(len(kernel))
        # 4.5 standard errors of the estimated deviation and mean.
        tolerance = 4.5 / math.sqrt(2 * kernel.size)
        assert scaled.std() == pytest.approx(1.0, abs=tolerance)
        assert abs(scaled.mean()) * math.sqrt(kernel.size) < 4.5
    seen = {name: params[name]["kernel"].shape for name in params.keys() - zeros}
    code = (256, 128) if "latent" in params else (3, 256)
    assert seen["encoder_0"] == (6, 256) and code in seen.values()


def layers(params, x, side):
    """The hidden layers of one side, in float64."""
    for name in sorted(name for name in params if name.startswith(side)):
        x = np.maximum(x @ np.float64(params[name]["kernel"]) + params[name]["bias"], 0)
    return x


def affine(layer, x, mult=1.0):
    return mult * (x @ np.float64(layer["kernel"])) + layer["bias"]


@pytest.mark.parametrize(("rules", "mult"), [(ADAM_LIKE, 0.5), (STANDARD, 1.0)])
def test_the_autoencoder_is_its_definition(images, rules, mult):
    model = BASES[0].at_width(16).with_rules(rules)
    params = randomized(model)
    got = jax.jit(lambda params: model.apply(params, images, PIXELS))(params)
    code = affine(
        params["latent"], layers(params, np.asarray(images).reshape(4, -1), "enc")
    )
    assert code.shape == (4, 8) and (code < 0).any()
    want = affine(params["readout"], layers(params, code, "dec"), mult)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("rules", "mult"), [(ADAM_LIKE, 0.5), (STANDARD, 1.0)])
def test_the_vae_is_its_definition(images, rules, mult):
    model = BASES[1].at_width(16).with_rules(rules)
    params = randomized(model)

    def compute(params):
        return (
            model.apply(params, images, PIXELS, KEY),
            model.activations(params, images, PIXELS, KEY),
            model.apply(params, images, PIXELS),
        )

    sampled, recorded, middle = jax.jit(compute)(params)
    features = layers(params, np.asarray(images).reshape(4, -1), "enc")
    heads = [affine(params[name], features, mult) for name in ("mean", "log_variance")]
    for code, result in ((recorded["sample"], sampled), (heads[0], middle)):
        decoded = layers(params, np.asarray(code, np.float64), "dec")
        want = (affine(params["readout"], decoded, mult), *heads)
        for x, y in zip(result, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
    assert not np.array_equal(sampled.outputs, middle.outputs)
    # KL(N(m, v) || N(0, 1)) = ½ Σ (m² + v − 1 − ln v)
    m, v = heads[0], np.exp(heads[1])
    want = 0.5 * (m**2 + v - 1 - np.log(v)).sum(1)
    np.testing.assert_allclose(sampled.divergence(), want, rtol=1e-4)


def test_codes_are_samples_of_the_posterior(images):
    model = BASES[1]
    params = randomized(model)
    num = 3000

    def compute(params):
        first = model.apply(params, images, PIXELS)
        seen = jax.lax.map(
            lambda key: model.activations(params, images, PIXELS, key)["sample"],
            jax.random.split(KEY, num),
        )
        return first, seen

    first, codes = jax.jit(compute)(params)
    _, mean, log_variance = (np.asarray(x, np.float64) for x in first)
    standard = (np.asarray(codes, np.float64) - mean) / np.exp(0.5 * log_variance)
    assert standard.shape == (num, 4, 3)
    assert np.abs(standard.mean(0)).max() * math.sqrt(num) < 4.5
    assert np.abs((standard**2).mean(0) - 1).max() < 4.5 * math.sqrt(2 / num)
    flat = np.corrcoef(standard.reshape(num, -1).T)
    assert np.abs(flat - np.eye(12)).max() < 4.5 / math.sqrt(num)


def test_the_divergence_is_that_of_samples():
    mean, log_variance = np.array([[0.5, -1.0]]), np.array([[-2.0, 0.7]])
    posterior = Inference(jnp.zeros((1, 1)), *map(jnp.float32, (mean, log_variance)))
    exact = posterior.divergence()
    rng = np.random.default_rng(3)
    std = np.exp(0.5 * log_variance)
    noise = rng.normal(size=(100_000, 2))
    code = mean + std * noise
    # ln q(z|x) − ln p(z), summed over the code.
    ratio = (0.5 * code**2 - 0.5 * noise**2 - np.log(std)).sum(1)
    error = ratio.std() / math.sqrt(len(ratio))
    assert float(exact[0]) == pytest.approx(ratio.mean(), abs=4.5 * error)
    assert error < 0.01 < float(exact[0])


@pytest.mark.parametrize("kind", [AutoEncoder, VAE])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 0, "width = 0 must be a positive whole number"),
        ("depth", -1, "depth = -1 must be a positive whole number"),
        ("base_width", 2.5, "base_width = 2.5 must be a whole number"),
        ("activation", "sine", "activation = 'sine' must be one of relu"),
        ("rules", "mup", "rules = 'mup' must be one of STANDARD"),
    ],
)
def test_bad_fields_are_refused(kind, field, value, message):
    with pytest.raises(ValueError) as info:
        kind(**{field: value})
    assert message in str(info.value) and "\n" not in str(info.value)


def test_a_bottleneck_must_leave_a_unit():
    for field in ("width", "base_width"):
        with pytest.raises(ValueError, match=f"^{field} = 3 must be at least bottlen"):
            AutoEncoder(**{field: 3}, bottleneck=4)
    with pytest.raises(ValueError, match="bottleneck = 0 must be a positive"):
        AutoEncoder(bottleneck=0)
    with pytest.raises(ValueError, match="code = True must be a whole number"):
        VAE(code=True)
    specs = AutoEncoder(width=9, bottleneck=4).specs((2,), 2)
    assert specs["latent"]["bias"].shape == (2,)
