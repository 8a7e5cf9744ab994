"""Residual networks: roles, initialization, multipliers of width and depth."""

import math

import jax
import numpy as np
import pytest

from parametrization import ADAM_LIKE, COMPLETEP, STANDARD
from tasks.models.resnet import ResNet
from tests.tasks import families
from tests.tasks.models import numpy_layers

LABELS = np.arange(4)
SHAPE = (7, 6, 2)
TINY = ResNet((1, 1), width=4, base_width=4, base_depth=2, groups=2)


def images(shape, num=4):
    """Images of different contrast, each with pixels of different contrast."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(num, *shape)) * np.exp(rng.normal(size=(1, *shape)))
    return (x * np.exp(rng.normal(size=(num, 1, 1, 1)))).astype(np.float32)


IN = "kernel kernel channels -> channels"


def vectors(name, size, *depth):
    """The gain and the shift of a normalization at twice the base width."""
    row = ("-> channels", "vector", (size,), (size // 2,), 1.0, *depth)
    return {f"{name}/gain": row, f"{name}/shift": row}


def test_every_parameter_has_its_role():
    model = ResNet((2, 1), width=8, base_width=4, base_depth=2)
    assert families.described(model.specs((6, 6, 3), 10)) == {
        "stem/kernel": (
            "kernel kernel image_channels -> channels",
            "input",
            (3, 3, 3, 8),
            (3, 3, 3, 4),
            1.0,
        ),
        **vectors("stage_0_block_0/norm_0", 8, 1.5),
        "stage_0_block_0/conv_0/kernel": (
            IN,
            "hidden",
            (3, 3, 8, 8),
            (3, 3, 4, 4),
            2.0,
            1.5,
        ),
        **vectors("stage_0_block_0/norm_1", 8, 1.5),
        "stage_0_block_0/conv_1/kernel": (
            IN,
            "hidden",
            (3, 3, 8, 8),
            (3, 3, 4, 4),
            2.0,
            1.5,
        ),
        **vectors("stage_0_block_1/norm_0", 8, 1.5),
        "stage_0_block_1/conv_0/kernel": (
            IN,
            "hidden",
            (3, 3, 8, 8),
            (3, 3, 4, 4),
            2.0,
            1.5,
        ),
        **vectors("stage_0_block_1/norm_1", 8, 1.5),
        "stage_0_block_1/conv_1/kernel": (
            IN,
            "hidden",
            (3, 3, 8, 8),
            (3, 3, 4, 4),
            2.0,
            1.5,
        ),
        **vectors("stage_1_block_0/norm_0", 8, 1.5),
        "stage_1_block_0/conv_0/kernel": (
            IN,
            "hidden",
            (3, 3, 8, 16),
            (3, 3, 4, 8),
            2.0,
            1.5,
        ),
        **vectors("stage_1_block_0/norm_1", 16, 1.5),
        "stage_1_block_0/conv_1/kernel": (
            IN,
            "hidden",
            (3, 3, 16, 16),
            (3, 3, 8, 8),
            2.0,
            1.5,
        ),
        "stage_1_block_0/shortcut/kernel": (
            IN,
            "hidden",
            (1, 1, 8, 16),
            (1, 1, 4, 8),
            2.0,
        ),
        **vectors("norm", 16),
        "readout/kernel": ("channels -> classes", "output", (16, 10), (8, 10), 2.0),
        "readout/bias": ("-> classes", "vector", (10,), (10,), 1.0),
    }


def test_the_loss_starts_at_ln_c_and_kernels_have_the_deviations_of_their_roles():
    model = ResNet((1, 1), width=32, base_width=16, base_depth=1, norm="layer")
    params = families.start(model, images((4, 4, 3)), LABELS, 7)
    narrow, block = params["stage_0_block_0"], params["stage_1_block_0"]
    kernels = {
        9 * 3: params["stem"]["kernel"],
        9 * 32: narrow["conv_1"]["kernel"],
        9 * 64: block["conv_1"]["kernel"],
        32: block["shortcut"]["kernel"],
    }
    for fan_in, kernel in kernels.items():
        values = np.asarray(kernel, np.float64)
        # 4.5 standard errors of the estimated deviation and mean.
        tolerance = 4.5 / math.sqrt(2 * values.size)
        assert values.std() * math.sqrt(fan_in) == pytest.approx(1, abs=tolerance)
        assert abs(values.mean()) * math.sqrt(fan_in * values.size) < 4.5
    for layer in (narrow["norm_0"], block["norm_1"], params["norm"]):
        assert (np.asarray(layer["gain"]) == 1).all()
        assert (np.asarray(layer["shift"]) == 0).all()
    assert not any(np.asarray(x).any() for x in params["readout"].values())


@pytest.mark.slow
def test_at_the_base_shape_all_parametrizations_agree_bit_for_bit():
    results = families.by_rules(TINY, images(SHAPE), LABELS, 10)
    families.assert_equal_bits(results)


def reference(model, params, x, width_mult, depth_mult):
    """Logits, literally, in float64; the multipliers of readout and branches given."""
    groups = model.groups if model.norm == "group" else None
    x = numpy_layers.conv(x, params["stem"]["kernel"])
    for stage, blocks in enumerate(model.blocks):
        for i in range(blocks):
            block = params[f"stage_{stage}_block_{i}"]
            stride = 2 if stage > 0 and i == 0 else 1
            h = np.maximum(numpy_layers.norm(x, block["norm_0"], groups), 0)
            h = numpy_layers.conv(h, block["conv_0"]["kernel"], stride)
            h = np.maximum(numpy_layers.norm(h, block["norm_1"], groups), 0)
            h = numpy_layers.conv(h, block["conv_1"]["kernel"])
            if stage > 0 and i == 0:
                x = numpy_layers.conv(x, block["shortcut"]["kernel"], stride)
            x = x + depth_mult * h
    x = np.maximum(numpy_layers.norm(x, params["norm"], groups), 0).mean((1, 2))
    readout = params["readout"]
    return width_mult * (x @ np.float64(readout["kernel"])) + readout["bias"]


MULTIPLIERS = {STANDARD: (1.0, 1.0), ADAM_LIKE: (0.5, 1.0), COMPLETEP: (0.5, 1 / 3)}


@pytest.mark.parametrize(
    ("norm", "rules"),
    [("group", STANDARD), ("layer", ADAM_LIKE), ("group", COMPLETEP)],
    ids=["standard", "mup", "completep"],
)
def test_logits_are_those_of_the_definition(norm, rules):
    model = ResNet((1, 2), 4, 2, 1, rules, norm=norm, groups=2)
    params, x = families.randomized(model, SHAPE, 10), images(SHAPE)
    wants = {r: reference(model, params, x, *m) for r, m in MULTIPLIERS.items()}
    want = wants.pop(rules)
    largest = np.abs(want).max()
    assert all(np.abs(want - other).max() > 0.01 * largest for other in wants.values())
    logits = jax.jit(lambda params, x: model.apply(params, x, 10))(params, x)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * largest)


def test_without_its_branch_a_block_is_its_shortcut():
    params = families.randomized(TINY, SHAPE, 10)
    for block in ("stage_0_block_0", "stage_1_block_0"):
        kernel = params[block]["conv_1"]["kernel"]
        params[block]["conv_1"]["kernel"] = np.zeros_like(kernel)
    run = jax.jit(lambda params, x: TINY.activations(params, x, 10))
    layers = {k: np.asarray(x) for k, x in run(params, images(SHAPE)).items()}
    assert layers["stage_0_block_0/conv_0/out"].any()
    for stream in ("stage_0_stream_1_of_1", "stage_0_stream"):
        np.testing.assert_array_equal(layers[stream], layers["stem/out"])
    shortcut = layers["stage_1_block_0/shortcut/out"]
    assert shortcut.shape == (4, 4, 3, 8)
    np.testing.assert_array_equal(layers["stage_1_stream"], shortcut)
    # A shortcut is a convolution 1x1: every second position, projected.
    kernel = np.float64(params["stage_1_block_0"]["shortcut"]["kernel"][0, 0])
    want = np.float64(layers["stage_0_stream"])[:, ::2, ::2] @ kernel
    np.testing.assert_allclose(
        shortcut, want, rtol=1e-5, atol=1e-5 * np.abs(want).max()
    )


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_features_move_with_the_image_by_multiples_of_the_stride(norm):
    model = ResNet((1, 1), 4, 4, 2, norm=norm, groups=2)
    params = families.randomized(model, (32, 32, 1), 10)
    content = np.zeros((1, 32, 32, 1), np.float32)
    content[:, 13:17, 14:18] = images((4, 4, 1), 1)
    run = jax.jit(lambda x: model.activations(params, x, 10)["norm/out"])

    # Six pixels see a border of the image; the content does not reach that far.
    def inside(features, down=0, right=0):
        return np.asarray(features)[:, 4 + down : 11 + down, 4 + right : 11 + right]

    still, largest = run(content), np.abs(run(content)).max()
    moved = run(np.roll(content, (2, -2), (1, 2)))
    assert np.abs(inside(still) - inside(moved)).max() > 0.1 * largest
    np.testing.assert_allclose(
        inside(still), inside(moved, 1, -1), rtol=1e-5, atol=1e-5 * largest
    )
    odd = run(np.roll(content, 1, 1))
    assert np.abs(inside(still) - inside(odd, 1)).max() > 0.1 * largest
    assert np.abs(inside(still) - inside(odd)).max() > 0.1 * largest


def test_networks_of_two_depths_share_the_names_of_what_they_can_compare():
    def streams(depth):
        model = TINY.at_depth(depth)
        params = families.randomized(model, SHAPE, 10)
        run = jax.eval_shape(lambda p: model.activations(p, images(SHAPE), 10), params)
        return {name for name in run if "stream" in name}

    ends = {"stage_0_stream", "stage_1_stream"}
    assert streams(2) == ends | {f"stage_{i}_stream_1_of_1" for i in range(2)}
    assert streams(4) == ends | {
        f"stage_{i}_stream_{j}_of_2" for i in range(2) for j in (1, 2)
    }


@pytest.mark.parametrize("shape", [(4, 4, 1), (64, 64, 3), (1, 40, 1)], ids=str)
@pytest.mark.parametrize("model", [ResNet(), ResNet((1, 2, 1, 1, 3), 64)], ids=str)
def test_images_of_any_resolution_are_taken(model, shape):
    params = jax.eval_shape(lambda key: model.init(key, shape, 10), families.KEY)
    x = jax.ShapeDtypeStruct((2, *shape), np.float32)
    logits = jax.eval_shape(lambda p, x: model.apply(p, x, 10), params, x)
    assert logits.shape == (2, 10)


def test_blocks_are_spread_evenly_over_the_stages():
    model = ResNet((2, 2, 2, 2), base_depth=4)
    assert (model.depth, model.at_width(32).width) == (8, 32)
    spread = [model.at_depth(depth).blocks for depth in (4, 6, 11, 16)]
    assert spread == [(1, 1, 1, 1), (2, 2, 1, 1), (3, 3, 3, 2), (4, 4, 4, 4)]
    deep = model.at_depth(6)
    assert (deep.depth, deep.base_depth) == (6, 4)
    with pytest.raises(ValueError, match="depth = 3 must be at least 4, a block for"):
        model.at_depth(3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": ()}, "blocks = () must be a non-empty tuple"),
        ({"blocks": (2, 0)}, "blocks = (2, 0) must be a non-empty tuple"),
        ({"width": -1}, "width = -1 must be a positive"),
        ({"base_width": 0}, "base_width = 0 must be a positive"),
        ({"base_depth": 0}, "base_depth = 0 must be a positive"),
        ({"norm": "none"}, "norm = 'none' must be one of layer, group"),
        ({"activation": None}, "activation = None must be one of relu"),
        ({"rules": 1}, "rules = 1 must be one of STANDARD"),
        ({"groups": 3}, "groups = 3 must divide the channels of every layer, with"),
        ({"base_width": 6}, "with base_width = 6 these are [6, 12, 24]"),
    ],
    ids=str,
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError) as info:
        ResNet(**fields)
    assert message in str(info.value) and "\n" not in str(info.value)


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match=r"inputs of shape \(8, 8\) must be images"):
        ResNet().specs((8, 8), 10)
