"""The adapter to google/learned_optimization, driven as that library's loops would."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt import Adam, SmallFC
from lopt.interchange.peer import PeerLearnedOptimizer, PeerState, at_base
from parametrization import ADAM_LIKE, infer_specs

RULE = Adam(schedule="cosine")  # small to compile, and it asks for the length
TARGET = {"w": np.float32([[1.0, -2.0, 0.5], [0.3, 0.0, -1.0]]), "b": np.float32([2.0])}
LENGTH = 3
THETA = {"learning_rate": jnp.float32(0.1)}


class FakeTask:
    """A quadratic with a counter as the model's state, as a `Task` there has it."""

    def init_with_state(self, key):
        noise = jax.random.normal(key, (2, 3))
        return {"w": noise, "b": jnp.zeros(1)}, jnp.int32(0)

    def loss_with_state(self, params, state, key, data):
        del key
        gaps = jax.tree.map(lambda p, t: jnp.sum((p - data * t) ** 2), params, TARGET)
        return sum(jax.tree.leaves(gaps)), state + 1


@functools.partial(jax.jit, static_argnames=("lopt", "task"))
@functools.partial(jax.vmap, in_axes=(None, None, 0, 0, 0, 0))
def one_step(lopt, task, theta, key, carry, data):
    """Trains a step or begins again, as a truncated step there does."""
    opt_state, is_done = carry
    opt = lopt.opt_fn(theta)

    def reset(key):
        params, state = task.init_with_state(key)
        return opt.init(params, state, num_steps=LENGTH, key=key), 0.0

    def train(key):
        params, state = opt.get_params(opt_state), opt.get_state(opt_state)
        value_and_grad = jax.value_and_grad(task.loss_with_state, has_aux=True)
        (loss, state), grad = value_and_grad(params, state, key, data)
        new = opt.update(opt_state, grad, loss=loss, model_state=state, key=key)
        return new, loss

    opt_state, loss = jax.lax.cond(jnp.logical_not(is_done), train, reset, key)
    return (opt_state, opt_state.iteration >= LENGTH), loss


@functools.partial(jax.jit, static_argnames=("lopt", "task"))
@functools.partial(jax.vmap, in_axes=(None, None, 0, 0))
def start(lopt, task, theta, key):
    params, state = task.init_with_state(key)
    opt = lopt.opt_fn(theta, is_training=True)
    return opt.init(params, state, num_steps=LENGTH, key=key), False


@pytest.fixture(scope="module")
def unrolled():
    """States and losses of six steps of two tasks with a θ of their own each."""
    lopt, task = PeerLearnedOptimizer(RULE), FakeTask()
    thetas = [{"learning_rate": jnp.float32(rate)} for rate in (0.3, 0.02)]
    theta = jax.tree.map(lambda *x: jnp.stack(x), *thetas)
    keys = jax.random.split(jax.random.key(1), 2)
    carry = start(lopt, task, theta, keys)
    states, losses = [carry[0]], []
    for step in range(6):
        data = jnp.full(2, 1.0 + 0.1 * step)
        # Another adapter of the same optimizer is the same to jit.
        lopt = PeerLearnedOptimizer(dataclasses.replace(RULE))
        carry, loss = one_step(lopt, task, theta, keys, carry, data)
        states.append(carry[0])
        losses.append(loss)
    return thetas, keys, states, losses


@jax.jit
def our_step(theta, params, state, data):
    rule = RULE.as_optax(theta, infer_specs(params, params), LENGTH)
    value_and_grad = jax.value_and_grad(FakeTask().loss_with_state, has_aux=True)
    (loss, _), grad = value_and_grad(params, 0, None, data)
    updates, state = rule.update(grad, state, params)
    return optax.apply_updates(params, updates), state, loss


def test_it_takes_the_steps_of_the_optax_transformation(unrolled):
    thetas, _, states, losses = unrolled
    for i, theta in enumerate(thetas):
        params = jax.tree.map(lambda x, i=i: x[i], states[0].params)
        specs = infer_specs(params, params)
        state = RULE.as_optax(theta, specs, LENGTH).init(params)
        for step in range(LENGTH):
            data = jnp.float32(1.0 + 0.1 * step)
            params, state, loss = our_step(theta, params, state, data)
            np.testing.assert_allclose(losses[step][i], loss, rtol=1e-5)
            for name, value in params.items():
                got = states[step + 1].params[name][i]
                np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-7)
    moved = states[LENGTH].params["w"] - states[0].params["w"]
    assert np.abs(np.asarray(moved)).max() > 1e-3


def test_a_run_begins_again_and_the_models_state_is_kept(unrolled):
    _, _, states, losses = unrolled
    counts = [np.asarray(state.iteration).tolist() for state in states]
    assert counts == [[n, n] for n in (0, 1, 2, 3, 0, 1, 2)]
    models = [np.asarray(state.state).tolist() for state in states]
    assert models == counts
    assert np.asarray(losses[3]).tolist() == [0.0, 0.0]
    for x, y in zip(*map(jax.tree.leaves, (states[4], states[0])), strict=True):
        np.testing.assert_array_equal(x, y)
    assert np.asarray(states[6].num_steps).tolist() == [LENGTH, LENGTH]


def test_nothing_is_compiled_for_the_second_step(unrolled):
    assert unrolled and one_step._cache_size() == 1


def test_a_simple_loop_needs_neither_state_nor_length_nor_loss():
    opt = PeerLearnedOptimizer(RULE, num_steps=10).opt_fn(THETA)
    params = jax.tree.map(jnp.asarray, TARGET)
    state = opt.init(params)
    after = jax.jit(opt.update)(state, params)
    assert opt.get_params_state(after) == (after.params, None)
    assert int(after.num_steps) == 10 and int(after.iteration) == 1
    back = opt.set_params(after, params)
    assert isinstance(back, PeerState) and back.params is params
    assert back.rule is after.rule
    with pytest.raises(ValueError, match="num_steps = None"):
        PeerLearnedOptimizer(RULE).opt_fn(THETA).init(params)


@dataclasses.dataclass(frozen=True)
class Listens:
    """A rule whose steps show what it was told."""

    def init(self, key):
        return {"rate": jnp.float32(1.0)}

    def as_optax(self, theta, specs, num_steps):
        def update(updates, state, params=None, *, loss, valid_loss, colour=0.0):
            valid_loss = jnp.where(jnp.isnan(valid_loss), 0.0, valid_loss)
            step = loss + 100.0 * valid_loss + 10.0 * colour + 0.001 * num_steps
            return jax.tree.map(lambda g: jnp.full_like(g, step), updates), state

        return optax.GradientTransformationExtraArgs(lambda p: (), update)


def test_loss_length_and_other_arguments_reach_the_rule():
    opt = PeerLearnedOptimizer(Listens()).opt_fn({"rate": jnp.float32(1.0)})
    state = opt.init(jnp.zeros(2), None, num_steps=jnp.int32(7))
    told = opt.update(state, jnp.ones(2), loss=jnp.float32(3.0), model_state="m")
    np.testing.assert_allclose(told.params, [3.007, 3.007], rtol=1e-6)
    assert opt.get_state(told) == "m"
    told = opt.update(state, jnp.ones(2), loss=jnp.float32(3.0), colour=2.0)
    np.testing.assert_allclose(told.params, [23.007, 23.007], rtol=1e-6)


@pytest.mark.parametrize("flag", [np.bool_, bool, jnp.bool_])
def test_a_validation_loss_is_kept_for_the_next_step(flag):
    opt = PeerLearnedOptimizer(Listens(), 7).opt_fn({"rate": jnp.float32(1.0)})
    update = opt.update if flag is bool else jax.jit(opt.update)
    state = opt.init(jnp.zeros(2), 0)
    state = update(
        state, jnp.ones(2), loss=jnp.float32(4.0), model_state=1, is_valid=flag(True)
    )
    np.testing.assert_array_equal(state.params, [0.0, 0.0])
    assert (int(state.iteration), int(opt.get_state(state))) == (0, 1)
    for expected in (403.007, 3.007):
        before = state.params
        state = update(
            state,
            jnp.ones(2),
            loss=jnp.float32(3.0),
            model_state=1,
            is_valid=flag(False),
        )
        np.testing.assert_allclose(state.params - before, [expected] * 2, rtol=1e-5)
    with pytest.raises(ValueError, match="is_valid needs the loss"):
        opt.update(state, jnp.ones(2), is_valid=True)


def wider(params):
    base = jax.tree.map(lambda p: jax.ShapeDtypeStruct((2, 3), p.dtype), params)
    return infer_specs(params, base)


def test_specs_give_parameters_their_base():
    rule, params = Adam(rules=ADAM_LIKE), {"w": jnp.ones([8, 6])}
    steps = []
    for specs in (at_base, wider):
        opt = PeerLearnedOptimizer(rule, 5, specs).opt_fn(THETA)
        after = opt.update(opt.init(params), params)
        steps.append(after.params["w"] - params["w"])
    assert ADAM_LIKE.step_scale(wider(params)["w"]) == 0.25
    np.testing.assert_allclose(steps[1], 0.25 * steps[0], rtol=1e-5)
    np.testing.assert_allclose(steps[0], jnp.full([8, 6], -0.1), rtol=1e-5)


def test_names_and_keys():
    rule = SmallFC(hidden_size=2, hidden_layers=1, step_mult=0.01, rules=ADAM_LIKE)
    lopt = PeerLearnedOptimizer(rule)
    name = "SmallFC_hidden_size2_hidden_layers1_step_mult0.01_rulesADAM_LIKE"
    assert lopt.name == lopt.opt_fn({}).name == name
    assert PeerLearnedOptimizer(Adam()).name == "Adam"
    assert hash(lopt) == hash(PeerLearnedOptimizer(dataclasses.replace(rule)))
    init = jax.jit(lopt.init)
    new, old = init(jax.random.key(4)), init(jax.random.PRNGKey(4))
    for x, y in zip(*map(jax.tree.leaves, (new, old)), strict=True):
        np.testing.assert_array_equal(x, y)
