"""A learned optimizer moves a model's parameters whatever the trees they come in.

For every optimizer, the program of a step on the parameters of some library is that of
the same tensors in plain dictionaries, so its numbers are the same.
"""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from jax.interpreters import partial_eval

from lopt.release import registry
from parametrization import ADAM_LIKE, infer_specs
from tests.lopt.test_properties import CASES

WIDTH, BASE_WIDTH = 4, 2
KINDS = {"*table": "lookup"}


def plain(width):
    """A vector, a hidden matrix and a lookup table."""
    rng = np.random.default_rng(width)
    shapes = {"bias": (width,), "kernel": (width, width), "table": (3, width)}
    values = {
        n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()
    }
    return {"layer": values}


class EquinoxLayer(eqx.Module):
    """A tree that can be called, with a static field that depends on the width."""

    bias: Any
    kernel: Any
    table: Any
    activation: Any
    width: int = eqx.field(static=True)

    def __call__(self, tokens):
        return self.activation(self.table[tokens] @ self.kernel + self.bias)


def equinox(width):
    """Leaves of the model that are not trained are None."""
    layer = EquinoxLayer(**plain(width)["layer"], activation=jnp.tanh, width=width)
    return eqx.filter({"layer": layer}, eqx.is_inexact_array)


def haiku(width):
    """Names of modules hold slashes."""

    def forward():
        with hk.name_scope("a/layer"):
            for name, x in plain(width)["layer"].items():
                hk.get_parameter(name, x.shape, init=lambda *_, x=x: x)

    return hk.transform(forward).init(None)


def linen(width):
    """Parameters are boxed, as `nn.with_partitioning` boxes them."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self):
            for name, x in plain(width)["layer"].items():
                draw = nn.with_partitioning(lambda _, x=x: x, (None,) * x.ndim)
                self.param(name, draw)

    return Layer().init(jax.random.key(0))["params"]


class NNXLayer(nnx.Module):
    """Its static fields depend on the width."""

    def __init__(self, width):
        for name, x in plain(width)["layer"].items():
            setattr(self, name, nnx.Param(x))
        self.width = width

    def __call__(self, tokens):
        return self.table[...][tokens] @ self.kernel[...] + self.bias[...]


TREES = {
    "equinox": equinox,
    "FrozenDict": lambda width: FrozenDict(plain(width)),
    "haiku": haiku,
    "linen": linen,
}


def program(function, tree):
    """Returns what a function of parameters and gradients computes, and constants."""
    closed = jax.make_jaxpr(function)(tree, tree)
    # Without what leads to no step, such as a count of steps that a library keeps.
    kept, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))
    return str(kept), [np.asarray(x).tolist() for x in closed.consts]


def steps(name, specs, num=1):
    """Returns `(params, grads) -> moved leaves` with the table's optimizer `name`."""
    extra = {"loss": jnp.float32(2.0)} if CASES[name].loss else {}

    def run(params, grads):
        rule = transformation(name, specs)
        state = rule.init(params)
        for _ in range(num):
            updates, state = rule.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return jax.tree.leaves(params)

    return run


def transformation(name, specs):
    optimizer = registry.with_rules(CASES[name].optimizer, ADAM_LIKE)
    theta = jax.tree.map(jnp.zeros_like, optimizer.init(jax.random.key(0)))
    return optimizer.as_optax(theta, specs, 10)


@functools.cache
def plain_program(name, num=1):
    specs = infer_specs(plain(WIDTH), plain(BASE_WIDTH), KINDS)
    return program(steps(name, specs, num), plain(WIDTH))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("library", TREES)
def test_containers_do_not_matter(library, name):
    tree = TREES[library](WIDTH)
    specs = infer_specs(tree, TREES[library](BASE_WIDTH), KINDS)
    assert program(steps(name, specs), tree) == plain_program(name)


def nnx_program(name, specs):
    extra = {"loss": jnp.float32(2.0)} if CASES[name].loss else {}
    graph, start = nnx.split(NNXLayer(WIDTH))

    def run(params, grads):
        model = nnx.merge(graph, params)
        optimizer = nnx.Optimizer(model, transformation(name, specs), wrt=nnx.Param)
        for _ in range(2):
            optimizer.update(model, grads, **extra)
        return jax.tree.leaves(nnx.state(model, nnx.Param))

    return program(run, start)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if case.slow else [])
        for name, case in CASES.items()
    ],
)
def test_nnx_optimizer_takes_every_optimizer(name):
    states = (nnx.state(NNXLayer(width)) for width in (WIDTH, BASE_WIDTH))
    specs = infer_specs(*states, KINDS)
    assert nnx_program(name, specs) == plain_program(name, num=2)


@pytest.mark.parametrize("form", [nnx.as_pure, nnx.to_pure_dict, lambda state: state])
def test_specs_of_any_form_of_an_nnx_state_will_do(form):
    states = (form(nnx.state(NNXLayer(width))) for width in (WIDTH, BASE_WIDTH))
    specs = infer_specs(*states, KINDS)
    assert nnx_program("celo2", specs) == plain_program("celo2", num=2)


def test_specs_may_be_those_of_a_larger_tree_and_of_another_container():
    layer = infer_specs(equinox(WIDTH), equinox(BASE_WIDTH), KINDS)
    specs = {**layer, "frozen": layer["layer"]}
    assert program(steps("celo2", specs), plain(WIDTH)) == plain_program("celo2")


def test_a_parameter_without_a_spec_is_named():
    specs = infer_specs(plain(WIDTH), plain(BASE_WIDTH), KINDS)
    del specs["layer"]["kernel"]
    for name in ("small_fc", "celo2", "adam", "muon", "weight_decay", "fallback"):
        with pytest.raises(
            ValueError, match="specs are without parameter layer/kernel"
        ):
            program(steps(name, specs), plain(WIDTH))
