"""Convolutional stacks: roles, initialization, multipliers, forward pass."""

import math

import jax
import numpy as np
import pytest

from parametrization import ADAM_LIKE, COMPLETEP, STANDARD
from tasks.models.convolutional import ConvNet
from tests.tasks import families
from tests.tasks.models import numpy_layers

LABELS = np.arange(4)


def images(shape, num=4):
    """Images of different contrast, each with pixels of different contrast."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(num, *shape)) * np.exp(rng.normal(size=(1, *shape)))
    return (x * np.exp(rng.normal(size=(num, 1, 1, 1)))).astype(np.float32)


ROLES = {
    "conv_0/kernel": (
        "kernel kernel image_channels -> channels",
        "input",
        (3, 3, 2, 8),
        (3, 3, 2, 4),
        1.0,
    ),
    "conv_1/kernel": (
        "kernel kernel channels -> channels",
        "hidden",
        (3, 3, 8, 16),
        (3, 3, 4, 8),
        2.0,
    ),
    "conv_2/kernel": (
        "kernel kernel channels -> channels",
        "hidden",
        (3, 3, 16, 24),
        (3, 3, 8, 12),
        2.0,
    ),
    "readout/kernel": (
        "channels -> classes",
        "output",
        (24, 10),
        (12, 10),
        2.0,
    ),
    "readout/bias": ("-> classes", "vector", (10,), (10,), 1.0),
}


def vectors(*names):
    """Roles of the vectors of these names, one of each in every layer."""
    return {
        f"{layer}/{name}": ("-> channels", "vector", (size,), (size // 2,), 1.0)
        for layer, name in names
        for size in [8 * (int(layer[-1]) + 1)]
    }


@pytest.mark.parametrize("norm", ["none", "layer", "group"])
def test_every_parameter_has_its_role(norm):
    model = ConvNet(
        width=8, multipliers=(1, 2, 3), strides=(2, 1, 3), base_width=4, norm=norm
    )
    if norm == "none":
        own = vectors(*((f"conv_{i}", "bias") for i in range(3)))
    else:
        own = vectors(
            *((f"norm_{i}", name) for i in range(3) for name in ("gain", "shift"))
        )
    assert families.described(model.specs((6, 6, 2), 10)) == ROLES | own


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (ConvNet(width=1, multipliers=(1,), strides=(2,)), (4, 4, 1)),
        (ConvNet(width=4, norm="group").at_depth(2), (64, 64, 3)),
        (ConvNet(width=4, norm="layer").at_depth(2), (1, 40, 1)),
    ],
    ids=["grey", "colour", "signal"],
)
def test_the_loss_starts_at_ln_c_whatever_the_shape(model, shape):
    params = families.start(model, images(shape), LABELS, 7)
    assert sum("conv" in name for name in params) == model.depth
    assert not any(np.asarray(x).any() for x in params["readout"].values())


def test_at_the_base_shape_all_parametrizations_agree_bit_for_bit():
    model = ConvNet(4, (1, 2), (2, 1), base_width=4, norm="layer")
    results = families.by_rules(model, images((6, 5, 2)), LABELS, 10)
    families.assert_equal_bits(results)


def reference(model, params, x, mult):
    """Logits, literally, in float64."""
    groups = model.groups if model.norm == "group" else None
    for i, stride in enumerate(model.strides):
        layer = params[f"conv_{i}"]
        x = numpy_layers.conv(x, layer["kernel"], stride, layer.get("bias"))
        if model.norm != "none":
            x = numpy_layers.norm(x, params[f"norm_{i}"], groups)
        x = np.maximum(x, 0.0)
    readout = params["readout"]
    pooled = x.mean((1, 2))
    return mult * (pooled @ np.float64(readout["kernel"])) + readout["bias"]


@pytest.mark.parametrize(
    ("norm", "rules", "mult"),
    [
        ("none", STANDARD, 1.0),
        ("none", COMPLETEP, 0.5),
        ("layer", ADAM_LIKE, 0.5),
        ("group", ADAM_LIKE, 0.5),
    ],
)
def test_logits_are_those_of_the_definition(norm, rules, mult):
    shape = (9, 6, 2)
    model = ConvNet(8, (1, 2, 3), (2, 1, 3), 4, rules, norm=norm, groups=2)
    params, x = families.randomized(model, shape, 10), images(shape)
    want = reference(model, params, x, mult)
    other = reference(model, params, x, 1.5 - mult)
    largest = np.abs(want).max()
    assert largest > 0.3 and np.abs(want - other).max() > 0.1 * largest
    logits = jax.jit(lambda params, x: model.apply(params, x, 10))(params, x)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * largest)


def test_the_start_has_the_deviations_of_the_roles():
    model = ConvNet(48, (1, 2), (1, 1), base_width=16)
    params = families.start(model, images((4, 4, 3)), LABELS, 10)
    for name, fan_in in (("conv_0", 9 * 3), ("conv_1", 9 * 48)):
        values = np.asarray(params[name]["kernel"], np.float64)
        # 4.5 standard errors of the estimated deviation and mean.
        tolerance = 4.5 / math.sqrt(2 * values.size)
        assert values.std() * math.sqrt(fan_in) == pytest.approx(1, abs=tolerance)
        assert abs(values.mean()) * math.sqrt(fan_in * values.size) < 4.5
        assert not np.asarray(params[name]["bias"]).any()
    assert not any(np.asarray(x).any() for x in params["readout"].values())


def test_every_layer_is_recorded():
    model = ConvNet(width=4, norm="group")
    params = families.randomized(model, (8, 8, 1), 10)
    x = images((8, 8, 1))
    recorded = jax.eval_shape(lambda p: model.activations(p, x, 10), params)
    assert {name: value.shape for name, value in recorded.items()} == {
        "conv_0/out": (4, 4, 4, 4),
        "norm_0/out": (4, 4, 4, 4),
        "conv_1/out": (4, 4, 4, 8),
        "norm_1/out": (4, 4, 4, 8),
        "conv_2/out": (4, 4, 4, 8),
        "norm_2/out": (4, 4, 4, 8),
        "pooled": (4, 8),
        "readout/out": (4, 10),
    }


def test_other_depths_cut_the_stack_or_repeat_its_last_layer():
    model = ConvNet()
    assert model.depth == 3 and model.at_width(48).width == 48
    shorter, longer = model.at_depth(2), model.at_depth(5)
    assert (shorter.multipliers, shorter.strides) == ((1, 2), (2, 1))
    assert (longer.multipliers, longer.strides) == ((1, 2, 2, 2, 2), (2, 1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"multipliers = \(\) must be a non-empty"):
        model.at_depth(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width = 0 must be a positive"),
        ({"base_width": 1.5}, "base_width = 1.5 must be a whole number"),
        ({"multipliers": (1, 0, 2)}, "multipliers = (1, 0, 2) must be a non-empty"),
        ({"multipliers": [1, 2, 2]}, "multipliers = [1, 2, 2] must be a tuple"),
        ({"strides": (2, True, 1)}, "strides[1] = True must be a whole number"),
        ({"strides": (2, 1)}, "strides = (2, 1) must be as many as multipliers = (1,"),
        ({"norm": "batch"}, "norm = 'batch' must be one of none, layer, group"),
        ({"activation": "sin"}, "activation = 'sin' must be one of relu"),
        ({"rules": "mup"}, "rules = 'mup' must be one of STANDARD, ADAM_LIKE"),
        ({"groups": 0}, "groups = 0 must be a positive"),
        ({"norm": "group", "width": 6}, "with width = 6 these are [6, 12, 12]"),
        ({"norm": "group", "base_width": 2}, "with base_width = 2 these are [2, 4, 4]"),
    ],
    ids=str,
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError) as info:
        ConvNet(**fields)
    assert message in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (ConvNet(), (64,), "inputs of shape (64,) must be images"),
        (ConvNet(width=1, norm="layer"), (8, 8, 1), "norm = 'layer' of inputs of"),
        (ConvNet(4, norm="group"), (2, 2, 1), "has one value to normalize at a time"),
    ],
    ids=["flat", "layer", "group"],
)
def test_impossible_inputs_are_refused(model, shape, message):
    with pytest.raises(ValueError) as info:
        model.specs(shape, 10)
    assert message in str(info.value)
