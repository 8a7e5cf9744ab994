"""The MLP in both parametrizations: initialization, multipliers, base shape."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import ADAM_LIKE, STANDARD
from tasks import MLP, ImageClassification
from tasks.base import sample

KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def batch():
    task = ImageClassification()
    return sample(task, task.load_data(), jax.random.key(5))


def randomized(task, scale=0.3):
    """Parameters away from the start, where the readout is zero."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(task.init, KEY))
    rng = np.random.default_rng(2)
    values = [scale * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return structure.unflatten(values)


@pytest.mark.parametrize(
    ("widths", "rules"),
    [((1,), ADAM_LIKE), ((48,), STANDARD), ((16, 24, 8, 40), ADAM_LIKE)],
    ids=str,
)
def test_the_loss_starts_at_ln_10_whatever_the_shape(batch, widths, rules):
    task = ImageClassification(model=MLP(widths=widths, rules=rules))

    def start(key, images):
        params = task.init(key)
        logits = task.model.apply(params, images, 10)
        return params, logits, task.loss(params, key, batch)[0]

    params, logits, loss = jax.jit(start)(KEY, batch.images)
    assert len(params) == len(widths) + 1
    assert logits.shape == (128, 10) and not np.asarray(logits).any()
    assert loss.dtype == jnp.float32
    # One unit in the last place, which is what XLA's float32 logarithm of 10 is off.
    assert abs(float(loss) - math.log(10.0)) <= np.spacing(np.float32(math.log(10.0)))
    assert task.loss_at_chance == math.log(10.0)


def test_specs_lie_beside_the_parameters():
    task = ImageClassification(model=MLP(widths=(64, 128, 16), base_width=32))
    params = jax.eval_shape(task.init, KEY)
    specs = task.specs()
    pairs = jax.tree.map(lambda p, spec: p.shape == spec.shape, params, specs)
    assert all(jax.tree.leaves(pairs))
    described = {
        f"{layer}.{name}": (spec.kind, spec.base_shape, spec.fan_in_mult)
        for layer, tensors in specs.items()
        for name, spec in tensors.items()
    }
    assert described == {
        "hidden_0.kernel": ("input", (64, 32), 1.0),
        "hidden_0.bias": ("vector", (32,), 1.0),
        "hidden_1.kernel": ("hidden", (32, 32), 2.0),
        "hidden_1.bias": ("vector", (32,), 1.0),
        "hidden_2.kernel": ("hidden", (32, 32), 4.0),
        "hidden_2.bias": ("vector", (32,), 1.0),
        "readout.kernel": ("output", (32, 10), 0.5),
        "readout.bias": ("vector", (10,), 1.0),
    }


def test_at_the_base_shape_mup_is_standard_bit_for_bit(batch):
    results = []
    for rules in (ADAM_LIKE, STANDARD):
        task = ImageClassification(model=MLP((32, 32), base_width=32, rules=rules))
        params = jax.jit(task.init)(KEY)
        away = randomized(task)
        gradient = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
        results.append(
            (params, gradient(params, KEY, batch), gradient(away, KEY, batch))
        )
    same = jax.tree.map(lambda x, y: np.array_equal(x, y), *results)
    assert all(jax.tree.leaves(same))
    assert float(results[0][2][0][0]) > 0.1


def reference(params, images, readout_mult):
    """The network, literally, in float64."""
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    for i in range(len(params) - 1):
        layer = params[f"hidden_{i}"]
        x = np.maximum(x @ np.float64(layer["kernel"]) + layer["bias"], 0.0)
    readout = params["readout"]
    return readout_mult * (x @ np.float64(readout["kernel"])) + readout["bias"]


@pytest.mark.parametrize(
    ("rules", "mult"), [(ADAM_LIKE, 0.25), (STANDARD, 1.0)], ids=["mup", "standard"]
)
def test_at_four_times_the_width_only_the_readout_s_product_shrinks(batch, rules, mult):
    task = ImageClassification(model=MLP((64, 128), base_width=32, rules=rules))
    params = randomized(task)

    def evaluate(params):
        return task.model.apply(params, batch.images, 10), task.loss(params, KEY, batch)

    logits, (loss, aux) = jax.jit(evaluate)(params)
    want = reference(params, batch.images, mult)
    assert np.abs(want).max() > 1.0
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    shifted = want - want.max(1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    labels = np.asarray(batch.labels)
    entropy = -log_probs[np.arange(len(labels)), labels].mean()
    assert float(loss) == pytest.approx(entropy, rel=1e-5)
    assert float(aux["accuracy"]) == pytest.approx((want.argmax(1) == labels).mean())


def test_the_start_at_width_512_has_the_deviations_of_the_roles():
    model = MLP((512, 512, 512), base_width=32, rules=ADAM_LIKE)
    params = jax.jit(ImageClassification(model=model).init)(jax.random.key(1))
    for name, fan_in in (("hidden_0", 64), ("hidden_1", 512), ("hidden_2", 512)):
        values = np.asarray(params[name]["kernel"], np.float64)
        assert values.shape == (fan_in, 512)
        # 4.5 standard errors of the estimated deviation and mean.
        tolerance = 4.5 / math.sqrt(2 * values.size)
        assert values.std() * math.sqrt(fan_in) == pytest.approx(1, abs=tolerance)
        assert abs(values.mean()) * math.sqrt(fan_in * values.size) < 4.5
        assert not np.asarray(params[name]["bias"]).any()
    assert not any(np.asarray(x).any() for x in params["readout"].values())
    pair = [np.asarray(params[f"hidden_{i}"]["kernel"]).ravel() for i in (1, 2)]
    assert abs(np.corrcoef(pair)[0, 1]) < 4.5 / 512


@pytest.mark.parametrize("widths", [(), (0,), (32, 0), (32, -1)], ids=str)
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError) as info:
        MLP(widths=widths)
    assert f"widths = {widths}" in str(info.value)


def test_an_impossible_base_width_is_refused():
    with pytest.raises(ValueError, match="base_width = 0 must be a positive"):
        MLP(base_width=0)


def test_tasks_are_values():
    task = ImageClassification(model=MLP((8,)))
    again = ImageClassification(model=MLP((8,)))
    assert task == again and hash(task) == hash(again)
    assert task != dataclasses.replace(task, batch_size=64)
