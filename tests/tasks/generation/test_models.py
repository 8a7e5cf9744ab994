"""Networks of the three stages: roles, starts, and what they compute, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import COMPLETEP, Rules
from tasks.models import layers
from tasks.models.code_prior import CodeInputs, CodePrior
from tasks.models.latent_denoiser import LatentDenoiser, LatentInputs
from tasks.models.vq_autoencoder import (
    VQAutoEncoder,
    perplexity,
    quantize,
    straight_through,
)
from tests.tasks import families
from tests.tasks.families import KEY
from tests.tasks.models import numpy_layers

SIZES = {"width": 8, "base_width": 4, "depth": 1, "base_depth": 1}
A = VQAutoEncoder(**SIZES, latent_channels=3, num_codes=6)
B = LatentDenoiser(**SIZES, code_channels=2, code_stride=8)
C = CodePrior(**SIZES, num_classes=5)
IMAGE = (16, 8, 3)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def block_roles(name, depth_mult):
    """A block of width 8 over 4, MLP of 16 over 8, conditioned by a vector of 8."""
    vector = "-> channels"

    def row(axes, kind, shape, base, mult):
        return (axes, kind, shape, base, mult, depth_mult)

    return {
        f"{name}/depthwise/kernel": row(
            "kernel kernel -> channels", "input", (3, 3, 8), (3, 3, 4), 1.0
        ),
        f"{name}/depthwise/bias": row(vector, "vector", (8,), (4,), 1.0),
        f"{name}/norm/gain": row(vector, "vector", (8,), (4,), 1.0),
        f"{name}/norm/shift": row(vector, "vector", (8,), (4,), 1.0),
        f"{name}/modulation/kernel": row(
            "channels -> gates channels", "hidden", (8, 2, 8), (4, 2, 4), 2.0
        ),
        f"{name}/modulation/bias": row(
            "-> gates channels", "vector", (2, 8), (2, 4), 1.0
        ),
        f"{name}/up/kernel": row("channels -> mlp", "hidden", (8, 16), (4, 8), 2.0),
        f"{name}/up/bias": row("-> mlp", "vector", (16,), (8,), 1.0),
        f"{name}/response_norm/gain": row("-> mlp", "vector", (16,), (8,), 1.0),
        f"{name}/response_norm/shift": row("-> mlp", "vector", (16,), (8,), 1.0),
        f"{name}/down/kernel": row("mlp -> channels", "hidden", (16, 8), (8, 4), 2.0),
        f"{name}/down/bias": row(vector, "vector", (8,), (4,), 1.0),
    }


def test_every_parameter_of_the_prior_has_its_role():
    model = dataclasses.replace(C, depth=2)
    wide, narrow = (8,), (4,)
    assert families.described(model.specs((2, 1, 3), 3)) == {
        "stem/kernel": ("code -> channels", "input", (3, 8), (3, 4), 1.0),
        "stem/bias": ("-> channels", "vector", wide, narrow, 1.0),
        "classes/table": ("vocab -> width", "input", (6, 8), (6, 4), 1.0),
        "time/dense/kernel": ("inputs -> channels", "input", (32, 8), (32, 4), 1.0),
        "time/dense/bias": ("-> channels", "vector", wide, narrow, 1.0),
        **block_roles("blocks/block_0", 2.0),
        **block_roles("blocks/block_1", 2.0),
        "norm/gain": ("-> channels", "vector", wide, narrow, 1.0),
        "norm/shift": ("-> channels", "vector", wide, narrow, 1.0),
        "readout/kernel": ("channels -> code", "output", (8, 6), (4, 6), 2.0),
        "readout/bias": ("-> code", "vector", (6,), (6,), 1.0),
    }


def by_path(model, num_outputs):
    specs = model.specs(IMAGE, num_outputs)
    return {
        "/".join(key.key for key in path): spec
        for path, spec in jax.tree_util.tree_leaves_with_path(specs)
    }


def test_fan_ins_of_full_and_of_depthwise_convolutions():
    a, b = by_path(A, 3), by_path(B, 3)
    full = [a["encoder/down/kernel"], b["compressor/down_0/kernel"]]
    for spec in full:  # k · k · c_in, which grows
        assert (spec.fan_in, spec.fan_in_mult, spec.kind) == (9 * 8, 2.0, "hidden")
    depthwise = [
        spec for path, spec in (a | b).items() if path.endswith("depthwise/kernel")
    ]
    assert len(depthwise) == 3
    for spec in depthwise:  # nine places of one channel, which do not
        assert (spec.fan_in, spec.fan_in_mult, spec.shape) == (9, 1.0, (3, 3, 8))
        # A vector in all but the name: every column has the same exponents for both.
        gain = a["decoder/norm/gain"]
        for rules in Rules:
            assert rules.step_scale(spec) == rules.step_scale(gain)
            assert rules.gradient_scale(spec) == rules.gradient_scale(gain)


def test_the_ends_of_stages_a_and_b_have_their_roles():
    specs = by_path(A, 3) | by_path(B, 3)
    wants = {
        "codebook": ("fixed", (6, 3), "vocab -> code"),
        "encoder/fold/kernel": (
            "input",
            (2, 2, 3, 8),
            "patch patch image_channels -> channels",
        ),
        "encoder/latents/kernel": ("output", (8, 3), "channels -> code"),
        "decoder/embed/kernel": ("input", (3, 8), "code -> channels"),
        "decoder/readout/kernel": ("output", (8, 48), "channels -> pixels"),
        "compressor/fold/kernel": (
            "input",
            (4, 4, 3, 8),
            "patch patch image_channels -> channels",
        ),
        "compressor/code/kernel": ("output", (8, 2), "channels -> code"),
        "denoiser/spread/kernel": (
            "input",
            (2, 2, 2, 8),
            "code -> patch patch channels",
        ),
        "denoiser/readout/kernel": ("output", (8, 6), "channels -> code"),
    }
    for path, (kind, shape, axes) in wants.items():
        spec = specs[path]
        assert (spec.kind, spec.shape, str(spec.axes)) == (kind, shape, axes), path


@pytest.fixture(scope="module")
def starts():
    """Outputs of all three stages at the start, of one program."""
    x, images = normal(2, 4, 2, 3), normal(2, *IMAGE)
    code = normal(2, 2, 1, 2)

    def compute(key):
        a = A.apply(A.init(key, IMAGE, 3), images, 3)
        inputs = LatentInputs(x, jnp.ones(2), images, jnp.ones(2), jnp.asarray(code))
        b = B.apply(B.init(key, IMAGE, 3), inputs, 3)
        labels = jnp.asarray([5, 0])
        shape = x.shape[1:]
        c = C.apply(C.init(key, shape, 3), CodeInputs(x, jnp.ones(2), labels), 3)
        return a, b, c, x

    return jax.jit(compute)(KEY)


def test_heads_are_zero_at_the_start(starts):
    a, b, c, x = starts
    assert np.array_equal(c, x / np.float32(1 + 1e-5)) and x.any()
    np.testing.assert_allclose(b, 2 * x, rtol=1e-6)  # b = σ(0) = ½
    assert not np.asarray(a.outputs).any() and not np.asarray(a.latents).any()
    assert a.outputs.shape == (2, *IMAGE) and a.latents.shape == (2, 4, 2, 3)
    assert a.indices.shape == (2, 4, 2) and a.indices.dtype == jnp.int32
    assert len(np.unique(a.indices)) == 1


def test_the_nearest_entry_is_found():
    latents, codebook = normal(50, 3, 4), normal(40, 4)
    codebook[7] = codebook[3]  # the first of equals is taken
    latents[0, 0] = codebook[7]
    entries, indices = jax.jit(quantize)(latents, codebook)
    z, e = np.float64(latents)[..., None, :], np.float64(codebook)
    want = ((z - e) ** 2).sum(-1).argmin(-1)
    assert np.array_equal(indices, want) and indices[0, 0] == 3
    assert np.array_equal(entries, codebook[want])


def test_the_gradient_goes_straight_through_and_choosing_has_none():
    latents, codebook, weights = normal(6, 4), normal(9, 4), normal(6, 4)

    def through(latents, codebook):
        entries, _ = quantize(latents, codebook)
        return jnp.sum(weights * straight_through(latents, entries))

    value, grads = jax.jit(jax.value_and_grad(through, (0, 1)))(latents, codebook)
    entries, indices = map(np.asarray, jax.jit(quantize)(latents, codebook))
    # The entries go in, and what comes back is the latents' as it is.
    assert float(value) == pytest.approx(float((weights * entries).sum()), rel=1e-5)
    assert np.array_equal(grads[0], weights) and not np.asarray(grads[1]).any()
    # A loss of the entries moves those that were chosen, and no latent.
    moved = jax.jit(jax.grad(lambda z, e: jnp.sum(quantize(z, e)[0]), (0, 1)))(
        latents, codebook
    )
    assert not np.asarray(moved[0]).any()
    counts = np.bincount(indices, minlength=9)
    np.testing.assert_array_equal(moved[1], np.repeat(counts[:, None], 4, 1))


def test_perplexity_counts_the_entries_in_use():
    indices = RNG.choice(8, size=(40, 3), p=[0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0])
    share = np.bincount(indices.ravel(), minlength=8) / indices.size
    want = np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())
    count = jax.jit(perplexity, static_argnums=1)
    assert float(count(indices, 8)) == pytest.approx(want, rel=1e-5)
    assert float(count(np.arange(120).reshape(40, 3) % 8, 8)) == pytest.approx(8)
    assert float(count(np.full((40, 3), 5), 8)) == pytest.approx(1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def block(params, x, condition, scale):
    """A block from its definition, in float64."""
    params = jax.tree.map(np.float64, params)
    depthwise, down = params["depthwise"], params["down"]
    y = np.zeros_like(x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for b, row, column, channel in np.ndindex(x.shape):
        window = padded[b, row : row + 3, column : column + 3, channel]
        y[b, row, column, channel] = (window * depthwise["kernel"][..., channel]).sum()
    y = numpy_layers.norm(y + depthwise["bias"], params["norm"])
    change = np.einsum("bn,ngc->bgc", condition, params["modulation"]["kernel"])
    change += params["modulation"]["bias"]
    y = y * (1 + change[:, None, None, 0]) + change[:, None, None, 1]
    y = y @ params["up"]["kernel"] + params["up"]["bias"]
    y = y * sigmoid(y)
    gain, shift = (params["response_norm"][name] for name in ("gain", "shift"))
    norms = np.sqrt((y**2).sum((1, 2)) + 1e-6)
    relative = norms / norms.mean(1, keepdims=True)
    y = y + gain * y * relative[:, None, None] + shift
    return x + scale * (y @ down["kernel"] + down["bias"])


def test_the_prior_is_that_of_its_definition():
    model = dataclasses.replace(C, depth=2, rules=COMPLETEP)
    x, times = normal(3, 3, 2, 2), np.float32([0.2, 0.9, 0.5])
    labels = np.array([0, 4, 5])
    params = families.randomized(model, x.shape[1:], 2)
    found = jax.jit(lambda p: model.denoise(p, x, times, labels))(params)
    p = jax.tree.map(np.float64, params)
    angles = times[:, None] * 1000 ** (np.arange(16) / 15)
    features = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    condition = features @ p["time"]["dense"]["kernel"] + p["time"]["dense"]["bias"]
    condition = condition + p["classes"]["table"][labels]
    condition = condition * sigmoid(condition)
    y = x @ p["stem"]["kernel"] + p["stem"]["bias"]
    for i in range(2):
        y = block(p["blocks"][f"block_{i}"], y, condition, 0.5)  # base depth/depth
    y = numpy_layers.norm(y, p["norm"])
    both = 0.5 * (y @ p["readout"]["kernel"]) + p["readout"]["bias"]  # base/width
    want = (x - both[..., :2]) / (np.abs(1 - both[..., 2:]) + 1e-5)
    np.testing.assert_allclose(found, want, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope="module")
def parts():
    """Stage B as a whole and in parts, away from the start."""
    images, noisy = normal(2, *IMAGE), normal(2, 4, 2, 3)
    times = np.float32([0.3, 0.8])
    none = np.zeros((2, 2, 1, 2), np.float32)
    params = families.randomized(B, IMAGE, 3)

    def compute(params):
        def whole(images, scale, noise):
            inputs = LatentInputs(noisy, times, images, scale, noise)
            return B.apply(params, inputs, 3)

        code = B.compress(params, 3 * images)
        return {
            "code": code,
            "apart": B.denoise(params, noisy, times, code),
            "whole": whole(3 * images, jnp.ones(2), none),
            "dropped": whole(images, jnp.zeros(2), none),
            "dropped too": whole(3 * images, jnp.zeros(2), none),
            "noise alone": whole(images, jnp.zeros(2), code),
        }

    return jax.tree.map(np.asarray, jax.jit(compute)(params))


def test_compressor_and_denoiser_are_the_halves_of_stage_b(parts):
    np.testing.assert_allclose(parts["whole"], parts["apart"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        parts["noise alone"], parts["apart"], rtol=1e-5, atol=1e-5
    )
    # Without a code the picture does not matter; with it, it does.
    assert np.array_equal(parts["dropped"], parts["dropped too"])
    assert np.abs(parts["dropped"] - parts["whole"]).max() > 0.01


def test_codes_are_bounded(parts):
    code = np.float64(parts["code"])
    assert code.shape == (2, *B.code_shape(IMAGE)) == (2, 2, 1, 2)
    square = (code**2).mean((1, 2, 3))
    assert (square < 1).all() and (square > 1e-4).all()


def test_encoder_and_decoder_are_the_halves_of_stage_a():
    images = normal(2, *IMAGE)
    params = families.randomized(A, IMAGE, 3)

    def compute(params):
        latents = A.encode(params, images)
        return A.apply(params, images, 3), latents, A.decode(params, latents, 3)

    whole, latents, decoded = jax.jit(compute)(params)
    np.testing.assert_allclose(whole.latents, latents, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole.outputs, decoded, rtol=1e-4, atol=1e-4)
    assert len(np.unique(whole.indices)) > 1


def test_patches_are_squares_of_the_picture():
    x = np.arange(2 * 6 * 4 * 3).reshape(2, 6, 4, 3)
    cut = np.asarray(layers.space_to_depth(jnp.asarray(x), 2))
    assert cut.shape == (2, 3, 2, 2, 2, 3)
    assert np.array_equal(cut[1, 2, 1], x[1, 4:6, 2:4])
    assert np.array_equal(layers.depth_to_space(jnp.asarray(cut)), x)


def test_shapes_and_ratios():
    # 32 x 32 x 3 numbers become 8 x 8 x 4 and 2 x 2 x 8: 12 and 96 times fewer. The
    # paper's code has one place for 512/12 = 42.67 pixels in each direction, between
    # strides of 32 and of 64.
    model = LatentDenoiser()
    assert model.code_shape((32, 32, 3)) == (2, 2, 8)
    noisy = model.example((32, 32, 3), 4).noisy
    assert noisy.shape == (1, 8, 8, 4) and 3072 // noisy.size == 12
    assert 3072 // np.prod(model.code_shape((32, 32, 3))) == 96
    sides = [
        dataclasses.replace(model, code_stride=stride).code_shape((512, 512, 3))[0]
        for stride in (4, 8, 16, 32, 64)
    ]
    assert sides == [128, 64, 32, 16, 8] and sides[-1] < 12 < sides[-2]
    assert round(512 / 12, 2) == 42.67
    # A picture that the stride does not divide has a place more.
    assert model.code_shape((28, 36, 1)) == (2, 3, 8)
    specs = dataclasses.replace(B, code_stride=16).specs((28, 36, 1), 3)
    assert specs["denoiser"]["spread"]["kernel"].shape == (2, 4, 4, 8)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (A, {"num_codes": 0}, "num_codes = 0 must be a positive whole number"),
        (A, {"width": 2.5}, "width = 2.5 must be a whole number"),
        (B, {"code_stride": 12}, "code_stride = 12 must be a power of 2, at least 4"),
        (B, {"code_stride": 2}, "code_stride = 2 must be a power of 2, at least 4"),
        (B, {"activation": "step"}, "activation = 'step' must be one of relu"),
        (C, {"num_classes": 0}, "num_classes = 0 must be a positive whole number"),
        (C, {"rules": "mup"}, "rules = 'mup' must be one of STANDARD, ADAM_LIKE"),
    ],
    ids=str,
)
def test_impossible_fields_are_refused(model, fields, message):
    with pytest.raises(ValueError) as info:
        dataclasses.replace(model, **fields)
    assert message in str(info.value) and "\n" not in str(info.value)


def test_pictures_that_four_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="images of 10 x 8 pixels must have a height"):
        A.specs((10, 8, 3), 3)
