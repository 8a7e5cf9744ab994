"""Specs read from models, and models that are refused."""

from collections import OrderedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from parametrization import Axes, Named, ParamSpec, infer_specs, named, param_specs
from parametrization.paths import leaves_by_name
from parametrization.spec import unbox

ones = nn.initializers.ones


def spec_of(axes, shape, base_shape=None):
    return ParamSpec(Axes.parse(axes), shape, base_shape or shape)


def test_fan_in_counts_every_contracted_axis_and_no_stacked_one():
    assert spec_of(
        "[layers] kernel kernel channels -> channels", (7, 3, 2, 5, 9)
    ).fan_in
    assert spec_of("[layers] width -> width", (7, 4, 6)).fan_in == 4
    assert spec_of("kernel kernel channels -> channels", (3, 2, 5, 9)).fan_in == 30
    assert spec_of("heads head_dim -> width", (4, 8, 6)).fan_in == 32
    assert spec_of("-> width", (6,)).fan_in == 1
    assert spec_of("->", ()).fan_in == 1


def test_what_is_looked_up_is_not_summed_over():
    assert spec_of("vocab -> width", (100, 6)).fan_in == 1
    assert spec_of("positions -> width", (9, 6)).fan_in == 1
    assert spec_of("width -> vocab", (6, 100)).fan_in == 6


def test_ratios_are_of_a_whole_side_if_any_axis_of_it_scales():
    # Twice as many heads and heads 1.5 times as wide make three times the fan-in.
    attention = spec_of("heads head_dim -> width", (8, 15, 24), (4, 10, 6))
    assert attention.fan_in_mult == 3.0
    assert attention.fan_out_mult == 4.0
    conv = spec_of("kernel channels -> classes", (3, 6, 20), (3, 4, 10))
    assert (conv.fan_in_mult, conv.fan_out_mult) == (1.5, 1.0)
    first = spec_of("kernel image_channels -> channels", (9, 3, 20), (3, 1, 10))
    assert (first.fan_in_mult, first.fan_out_mult) == (1.0, 2.0)
    stacked = spec_of("[layers] width -> width", (8, 6, 4), (2, 3, 4))
    assert (stacked.fan_in_mult, stacked.fan_out_mult) == (2.0, 1.0)


def test_ranks_must_agree():
    for shape, base in (((4,), (4, 4)), ((4, 4), (4,)), ((4, 4, 4), (4, 4, 4))):
        with pytest.raises(ValueError, match="name 2 dimensions"):
            ParamSpec(Axes.parse("width -> width"), shape, base)


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, _=None):
        kernel = self.param("kernel", named(ones, "width -> width"), (self.width,) * 2)
        bias = self.param("bias", named(ones, "-> width"), (self.width,))
        return x @ kernel + bias[None], None


class Model(nn.Module):
    """One parameter of every kind, a scanned block among them."""

    width: int
    depth: int = 3

    @nn.compact
    def __call__(self, x):
        def param(name, axes, *shape):
            return self.param(name, named(ones, axes), shape)

        x = x @ param("in", "pixels -> width", 5, self.width)
        scanned = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = scanned(self.width, name="blocks")(x, None)
        param("heads", "width -> heads head_dim", self.width, self.width // 4, 4)
        param("gain", "->")
        x = x @ param("out", "width -> classes", self.width, 7)
        return x + param("out_bias", "-> classes", 7).reshape(1, 7)


def boxed(width, model=Model):
    return lambda key: model(width).init(key, jnp.zeros((2, 5)))["params"]


@pytest.fixture(scope="module")
def specs():
    return param_specs(boxed(16), boxed(8))


def test_specs_of_a_model(specs):
    assert specs == {
        "in": spec_of("pixels -> width", (5, 16), (5, 8)),
        "blocks": {
            "kernel": spec_of("[layers] width -> width", (3, 16, 16), (3, 8, 8)),
            "bias": spec_of("[layers] -> width", (3, 16), (3, 8)),
        },
        "heads": spec_of("width -> heads head_dim", (16, 4, 4), (8, 2, 4)),
        "gain": spec_of("->", ()),
        "out": spec_of("width -> classes", (16, 7), (8, 7)),
        "out_bias": spec_of("-> classes", (7,)),
    }


def test_kinds_hold_at_the_base_width_where_nothing_differs(specs):
    at_base = param_specs(boxed(8), boxed(8))
    kinds = jax.tree.map(lambda spec: spec.kind, at_base)
    assert kinds == jax.tree.map(lambda spec: spec.kind, specs)
    assert kinds["blocks"] == {"kernel": "hidden", "bias": "vector"}
    assert kinds["out"] == "output" and kinds["out_bias"] == "vector"
    assert {s.fan_in_mult for s in jax.tree.leaves(at_base)} == {1.0}


def test_specs_lie_beside_the_parameters(specs):
    params = unbox(jax.eval_shape(boxed(16), jax.random.key(0)))
    shapes = jax.tree.map(lambda p, spec: p.shape == spec.shape, params, specs)
    assert all(jax.tree.leaves(shapes)) and len(jax.tree.leaves(shapes)) == 7


def test_missing_and_extra_leaves_fail_by_structure(specs):
    params = unbox(jax.eval_shape(boxed(16), jax.random.key(0)))
    fewer = {name: spec for name, spec in specs.items() if name != "gain"}
    more = {**specs, "other": specs["gain"]}
    for wrong in (fewer, more):
        with pytest.raises(ValueError):
            jax.tree.map(lambda p, spec: p, params, wrong)


def test_specs_are_static_and_leaves(specs):
    assert hash(specs["in"]) == hash(spec_of("pixels -> width", (5, 16), (5, 8)))
    assert jax.tree.leaves(specs["in"]) == [specs["in"]]


def test_reading_specs_allocates_nothing():
    def huge(key):
        init = named(ones, "width -> width")
        return {"w": init(key, (10**7, 10**7), jnp.float32)}

    assert param_specs(huge, huge)["w"].fan_in == 10**7


def test_a_parameter_without_names_is_named():
    def init(key):
        box = named(ones, "-> width")(key, (4,))
        return {"layer": {"named": box, "forgotten": jnp.ones((4, 4))}}

    with pytest.raises(ValueError, match=r"\['layer'\]\['forgotten'\]") as info:
        param_specs(init, init)
    assert "named(" in str(info.value)


def test_a_wrong_number_of_axes_is_refused_where_the_parameter_is_born():
    with pytest.raises(ValueError, match="name 2 dimensions") as info:
        named(ones, "width -> width")(jax.random.key(0), (3, 3, 3))
    assert "(3, 3, 3)" in str(info.value)


def test_a_base_model_of_another_structure_is_refused():
    def one(key):
        return {"a": named(ones, "-> width")(key, (4,))}

    def two(key):
        return {**one(key), "b": named(ones, "-> width")(key, (4,))}

    for pair in ((one, two), (two, one)):
        with pytest.raises(ValueError, match="different parameters"):
            param_specs(*pair)


def test_a_base_model_with_other_axes_is_refused():
    def model(axes):
        return lambda key: {"a": named(ones, axes)(key, (4, 4))}

    with pytest.raises(ValueError, match=r"\['a'\] has axes 'width -> width'"):
        param_specs(model("width -> width"), model("pixels -> width"))


def test_a_box_survives_tree_maps():
    box = named(ones, "width -> classes")(jax.random.key(0), (2, 3))
    doubled = jax.tree.map(lambda x: 2 * x, box)
    assert isinstance(doubled, Named) and doubled.axes == box.axes
    assert unbox({"a": doubled, "b": jnp.ones(1)})["a"].tolist() == [[2.0] * 3] * 2


def shapes(**sizes):
    return {name: jax.ShapeDtypeStruct(size, "float32") for name, size in sizes.items()}


@pytest.mark.filterwarnings("ignore:infer_specs guesses")
def test_inferred_kinds_are_those_that_differ():
    specs = infer_specs(
        shapes(
            a=(5, 16), b=(16, 16), c=(16, 7), d=(16,), e=(), f=(5, 7), g=(3, 3, 8, 8)
        ),
        shapes(a=(5, 8), b=(8, 8), c=(8, 7), d=(8,), e=(), f=(5, 7), g=(3, 3, 4, 2)),
    )
    kinds = {name: spec.kind for name, spec in specs.items()}
    assert kinds == {
        "a": "input",
        "b": "hidden",
        "c": "output",
        "d": "vector",
        "e": "scalar",
        "f": "fixed",
        "g": "hidden",
    }
    assert specs["g"].fan_in == 72 and specs["g"].fan_in_mult == 2.0


def test_at_the_base_width_kinds_must_be_given():
    tree = shapes(w=(8, 8))
    assert infer_specs(tree, tree)["w"].kind == "fixed"
    assert infer_specs(tree, tree, {"['w']": "hidden"})["w"].kind == "hidden"


@pytest.mark.filterwarnings("ignore:infer_specs guesses")
def test_heads_are_beyond_inference():
    """As documented: the ratio of an attention matrix needs its names."""
    heads = infer_specs(shapes(q=(16, 4, 4)), shapes(q=(8, 2, 4)))["q"]
    assert heads.kind == "output"
    right = spec_of("width -> heads head_dim", (16, 4, 4), (8, 2, 4))
    told = infer_specs(shapes(q=(16, 4, 4)), shapes(q=(8, 2, 4)), {"['q']": "hidden"})
    assert told["q"].fan_in_mult == 4.0 and right.fan_in_mult == 2.0


@pytest.mark.parametrize("kind", ["input", "hidden", "output", "vector", "fixed"])
@pytest.mark.parametrize("base", [(8, 8), (8, 4), (4, 8), (4, 4)])
def test_a_given_kind_wins_over_the_shapes(kind, base):
    specs = infer_specs(shapes(w=(8, 8)), shapes(w=base), {"['w']": kind})
    assert specs["w"].kind == kind


def test_inference_refuses_what_it_cannot_match():
    for size, kind in (((2,), "hidden"), ((2,), "scalar"), ((), "vector")):
        with pytest.raises(ValueError, match=rf"'{kind}' of parameter a does"):
            infer_specs(shapes(a=size), shapes(a=size), {"['a']": kind})
    with pytest.raises(ValueError, match="structure"):
        infer_specs(shapes(a=(2,)), shapes(b=(2,)))
    with pytest.raises(ValueError, match=r"parameter a has shape \(2, 2\)"):
        infer_specs(shapes(a=(2, 2)), shapes(a=(2,)))
    with pytest.raises(ValueError, match=r"do not exist: .*\['z'\]"):
        infer_specs(shapes(a=(2,)), shapes(a=(2,)), {"['z']": "hidden"})


def test_the_depth_of_a_block_reaches_the_spec_through_scan_and_is_checked():
    def init(key):
        box = named(ones, "width -> width", depth_mult=2.5)(key, (4, 4))
        return {"w": jax.tree.map(lambda x: x, box).add_axis(0, {})}

    def stacked(key):
        box = init(key)["w"]
        return {"w": box.replace_boxed(jnp.ones((3, 4, 4)))}

    spec = param_specs(stacked, stacked)["w"]
    assert spec.depth_mult == 2.5 and str(spec.axes) == "[layers] width -> width"
    with pytest.raises(ValueError, match=r"depth_mult = 0\.0 must be positive"):
        ParamSpec(Axes.parse("-> width"), (4,), (4,), 0.0)


@pytest.mark.parametrize(
    ("size", "kind", "message"),
    [
        ((8, 8), "lokup", "kind 'lokup' of parameter a/b must be axes, as"),
        ((8,), "lookup", r"'lookup' of parameter a/b does not fit its shape \(8,\)"),
        ((8, 8), "stacked convolution", "does not fit its shape"),
        ((3, 8, 8), "position", "is a 'convolution'"),
        ((8, 8, 8), "width -> width", "a/b axes 'width -> width' name 2 dimensions"),
        ((8, 8), "widht -> width", "a/b unknown axis name 'widht'"),
    ],
)
def test_kinds_that_do_not_fit_name_the_parameter(size, kind, message):
    tree = {"a": shapes(b=size)}
    with pytest.raises(ValueError, match=message):
        infer_specs(tree, tree, {"a/*": kind})


def test_a_table_whose_rows_grow_is_refused():
    with pytest.raises(ValueError, match=r"parameter t .* axis 'vocab' is fixed"):
        infer_specs(shapes(t=(8, 5)), shapes(t=(4, 5)), {"t": "lookup"})


def test_what_is_no_array_and_what_is_missing_is_named():
    with pytest.raises(
        ValueError, match=r"parameter x/act of params is a .*not an arr"
    ):
        infer_specs({"x": {"act": jnp.tanh}}, {"x": {"act": jnp.tanh}})
    with pytest.raises(ValueError, match="base_params have no parameter x/w"):
        infer_specs({"x": shapes(w=(2,), b=(2,))}, {"x": shapes(b=(2,))})
    with pytest.raises(ValueError, match="params have no parameter x/w"):
        infer_specs({"x": shapes(b=(2,))}, {"x": shapes(w=(2,), b=(2,))})


def test_the_first_pattern_counts_and_each_must_match():
    tree = shapes(a=(8, 8), b=(8, 8))
    specs = infer_specs(tree, tree, {"a": "hidden", "*": "output"})
    assert (specs["a"].kind, specs["b"].kind) == ("hidden", "output")
    with pytest.raises(ValueError, match=r"do not exist: \['a'\]"):
        infer_specs(tree, tree, {"*": "output", "a": "hidden"})


def test_names_that_collide_and_stacks_that_grow_are_refused():
    twice = {"a": [jnp.ones(2), {"x": jnp.ones(3)}], "b": jnp.ones(2)}
    leaves_by_name(twice)
    one = OrderedDict([(1, jnp.ones(2)), ("1", jnp.ones(3))])
    with pytest.raises(ValueError, match="two parameters are called 1"):
        infer_specs(one, one)
    params, base = {"b": jnp.ones((8, 3, 8))}, {"b": jnp.ones((4, 3, 4))}
    for role in ("stacked", "stacked hidden"):
        with pytest.raises(ValueError, match="a stacked axis is as long in the base"):
            infer_specs(params, base, {"b": role})
    with pytest.raises(ValueError, match=r"kinds = \['b'\] must map paths to roles"):
        infer_specs(params, params, ["b"])


def test_a_readout_that_says_nothing_warns():
    params = {"w": jnp.ones((4, 4))}
    with pytest.warns(UserWarning, match="readout = 'step' has no effect"):
        infer_specs(params, params, readout="step")
