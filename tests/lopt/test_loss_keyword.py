"""The loss may be given as `loss`, or as `value`, optax's name for it."""

import jax
import numpy as np
import pytest

from lopt import RNNMLP, Celo, CeloAdam, Nominal, VeLO
from lopt.wrappers import (
    AccumulatedGradients,
    Bfloat16Features,
    ClippedGradients,
    RoleFallback,
    ScheduledSteps,
    StochasticBfloat16,
    WeightDecay,
)
from parametrization import Axes, ParamSpec

SPECS = {"w": ParamSpec(Axes.parse("width -> width"), (3, 3), (3, 3))}
VELO = VeLO(3, 2, 1, param_inits=2, step_mult=0.1)
RULES = (
    VELO,
    Celo(3, 2, 1, step_mult=0.1),
    CeloAdam(3, step_mult=0.1),
    RNNMLP(0.1, hidden_size=8, lstm_size=3, network_to_lstm=2, lstm_to_lstm=2),
)
ADAM = RULES[2]  # the quickest to compile
WRAPPED = (
    AccumulatedGradients(ADAM, 2),
    Bfloat16Features(VELO),
    ClippedGradients(ADAM),
    RoleFallback(ADAM),
    ScheduledSteps(ADAM),
    StochasticBfloat16(ADAM),
    WeightDecay(ADAM),
    Nominal(ADAM),
)
LOSSES = np.float32([2.0, 1.0, 5.0, 0.5, 2.5, 0.7, 4.0, 3.0])


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return np.float32(rng.normal(size=(1 + len(LOSSES), 3, 3)))


def named(rule):
    inner = getattr(rule, "inner", None)
    return f"{type(rule).__name__}{f'({type(inner).__name__})' if inner else ''}"


@pytest.mark.parametrize("rule", (*RULES, *WRAPPED), ids=named)
def test_value_is_the_loss_where_no_loss_is_given(rule, inputs):
    param, grads = {"w": inputs[0]}, {"w": inputs[1:]}
    shapes = jax.eval_shape(rule.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    theta = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), shapes)

    def run(**losses):
        lopt = rule.as_optax(theta, SPECS, 10)

        def step(state, given):
            grad, losses = given
            updates, state = lopt.update(grad, state, param, **losses)
            return state, updates["w"]

        return jax.lax.scan(step, lopt.init(param), (grads, losses))[1]

    @jax.jit
    def compute(loss, other):
        return (
            run(loss=loss),
            run(value=loss),
            run(loss=loss, value=other),
            run(value=other),
        )

    loss, value, both, other = compute(LOSSES, LOSSES[::-1].copy())
    np.testing.assert_array_equal(value, loss)
    np.testing.assert_array_equal(both, loss)
    assert np.abs(other - loss).max() > 1e-6 * np.abs(loss).max() > 0


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_without_either_the_loss_is_asked_for(rule, inputs):
    theta, params = rule.init(jax.random.key(0)), {"w": inputs[0]}
    lopt = rule.as_optax(theta, SPECS, 10)
    state = jax.eval_shape(lopt.init, params)
    with pytest.raises(ValueError, match=f"^{type(rule).__name__} needs the loss: "):
        lopt.update(params, state, params)
    with pytest.raises(ValueError, match=r"loss has shape \(2,\), must be one number"):
        lopt.update(params, state, params, value=np.ones(2))
