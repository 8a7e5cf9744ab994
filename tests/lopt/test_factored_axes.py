"""Rules with factored moments see an attention kernel as the matrix that acts."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from lopt import SmallFC
from lopt.learned.celo import Celo
from lopt.learned.elo import ELO
from lopt.learned.velo import VeLO
from lopt.release.registry import LEARNED
from lopt.tensors import tensor_shape
from parametrization import ADAM_LIKE, Axes, ParamSpec

RULES = (
    SmallFC(hidden_size=4, step_mult=0.1, rules=ADAM_LIKE),
    ELO(hidden_size=4, learning_rate=0.1, rules=ADAM_LIKE),
    VeLO(lstm_hidden_size=2, param_inits=2, step_mult=0.1, rules=ADAM_LIKE),
    Celo(lstm_hidden_size=2, step_mult=0.1, rules=ADAM_LIKE),
)
STEPS = 3
# Axes, shape, base shape, and the same as a matrix or a vector.
TENSORS = {
    "query": ("width -> heads head_dim", (8, 2, 5), (4, 1, 5), (8, 10)),
    "out": ("heads head_dim -> width", (2, 5, 8), (1, 5, 4), (10, 8)),
    "layers": ("[layers] width -> gates width", (2, 6, 4, 6), (2, 3, 4, 3), (6, 24)),
    "bias": ("-> gates width", (4, 6), (4, 3), (24,)),
    "conv": ("kernel kernel channels -> channels", (3, 3, 2, 4), (3, 3, 1, 2), None),
    "depthwise": ("kernel kernel -> channels", (3, 3, 4), (3, 3, 2), None),
    "unknown": ("width fixed -> width", (3, 4, 6), (3, 4, 3), None),
    "scalar": ("->", (), (), (1,)),
}
SPECS = {
    name: ParamSpec(Axes.parse(axes), shape, base)
    for name, (axes, shape, base, _) in TENSORS.items()
}


@pytest.mark.parametrize("name", TENSORS)
def test_sides_are_merged_and_positions_are_not(name):
    spec, wanted = SPECS[name], TENSORS[name][3]
    own = spec.shape[len(spec.axes.stacked) :] or (1,)
    assert tensor_shape(spec) == tensor_shape(spec, "tensor") == own
    assert tensor_shape(spec, "matrix") == (wanted or own)


def matrix_of(name, value, lead=0):
    """An array of the tensor `name`, behind `lead` axes, as the rule sees it."""
    stacked = lead + len(SPECS[name].axes.stacked)
    shape = () if name == "scalar" else tensor_shape(SPECS[name], "matrix")
    return value.reshape(*value.shape[:stacked], *shape)


def merged(spec):
    """The spec of the same parameter with the shape that a rule sees."""
    sides = [side and side[-1:] for side in (spec.axes.fan_in, spec.axes.fan_out)]
    stacked = spec.axes.stacked
    return dataclasses.replace(
        spec,
        axes=Axes(*sides, stacked),
        shape=(*spec.shape[: len(stacked)], *tensor_shape(spec, "matrix")),
        base_shape=tuple(np.reshape(spec.base_shape[: len(stacked)], -1))
        + tensor_shape(dataclasses.replace(spec, shape=spec.base_shape), "matrix"),
    )


def end_of(rule, theta, specs, params, grads):
    transformation = rule.as_optax(theta, specs, STEPS)

    @jax.jit
    def step(params, state, grads):
        loss = np.float32(1.0)
        updates, state = transformation.update(grads, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params)
    for t in range(STEPS):
        params, state = step(params, state, {n: g[t] for n, g in grads.items()})
    return params


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_kernel_of_three_axes_moves_as_its_matrix(rule, random_theta):
    names = ("query", "out", "layers", "bias")
    rng = np.random.default_rng(0)
    specs = {name: SPECS[name] for name in names}
    params = {n: np.float32(rng.normal(size=s.shape)) for n, s in specs.items()}
    grads = {
        n: np.float32(
            rng.normal(size=(STEPS, *s.shape)) * np.exp(rng.normal(size=s.shape))
        )
        for n, s in specs.items()
    }
    theta = random_theta(rule)
    assert rule.factored_axes == "matrix"
    got = end_of(rule, theta, specs, params, grads)
    as_matrices = end_of(
        rule,
        theta,
        {n: merged(s) for n, s in specs.items()},
        {n: matrix_of(n, x) for n, x in params.items()},
        {n: matrix_of(n, x, 1) for n, x in grads.items()},
    )
    tensors = dataclasses.replace(rule, factored_axes="tensor")
    apart = end_of(tensors, theta, specs, params, grads)
    for name in names:
        moved = np.abs(got[name] - params[name]).max()
        error = np.abs(matrix_of(name, got[name]) - as_matrices[name]).max()
        assert moved > 0 and error <= 1e-6 * moved, name
        assert np.abs(apart[name] - got[name]).max() > 1e-3 * moved, name


def test_every_rule_with_factored_moments_has_the_field():
    with_moments = {
        kind
        for kind in LEARNED
        if "factored_decays" in {field.name for field in dataclasses.fields(kind)}
    }
    with_field = {type(rule) for rule in RULES}
    # CELO2 has always seen matrices.
    assert {kind.__name__ for kind in with_moments - with_field} == {"Celo2"}
