"""Backpropagation against finite differences in float64, and what it shares with ES."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lopt.learned.learnable import LearnableAdam, LearnableSGD
from lopt.learned.small_fc import SmallFC
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.pes import PES
from metatrain.inner_training import InnerTraining
from metatrain.objective import Objective
from metatrain.outer import MetaTraining
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE, SGD_LIKE
from tasks.synthetic.quadratics import Quadratic
from tests.metatrain.toy import (
    EPISODE,
    LENGTH,
    PLAIN,
    THETA,
    WINDOW,
    WINDOWS,
    Toy,
    advance,
    begin,
    episode_gradient,
    estimated,
    window_keys,
    windows_of,
)

NOISY = Toy(noise=0.5)
STEPS = 4
SMALL = InnerTraining(
    Quadratic(dimension=3),
    SmallFC(hidden_size=3, step_mult=0.1, rules=ADAM_LIKE),
    Objective(cap=1e6),
)


def backpropagation(**fields):
    defaults = dict(num_particles=2, chunk=2, truncation=WINDOW, lengths=EPISODE)
    return Backpropagation(**(defaults | fields))


def test_full_backpropagation_is_the_gradient_of_the_episode():
    full = Backpropagation.full(LENGTH, num_particles=2, chunk=2)
    terms = windows_of(full, windows=1)["a"][0]
    truth = np.asarray(episode_gradient()["a"])
    np.testing.assert_allclose(terms, np.stack([truth, truth]), rtol=1e-5)
    kept = dataclasses.replace(full, remat=False)
    np.testing.assert_allclose(windows_of(kept, windows=1)["a"][0], terms, rtol=1e-6)


def test_truncated_backpropagation_does_not_see_earlier_windows():
    terms = windows_of(backpropagation())["a"][:, 0]
    constants = window_gradients()
    np.testing.assert_allclose(terms, constants, rtol=1e-5)
    short = terms.mean(axis=0) / np.asarray(episode_gradient()["a"])
    assert np.all((short > 0.5) & (short < 0.95)), short


def window_gradients():
    """Of each window's mean loss, where its beginning is a constant: [W, 2]."""
    state = PLAIN.start(THETA, (), None, 0)
    gradients = []
    for _ in range(WINDOWS):

        def loss(theta, state=state):
            unrolled = PLAIN.unroll(theta, state, (), None, None, num_steps=WINDOW)
            return unrolled.losses.mean(), unrolled.episode

        gradient, state = jax.grad(loss, has_aux=True)(THETA)
        gradients.append(gradient["a"])
    return np.asarray(gradients)


def in_float64(tree):
    def cast(x):
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


@pytest.mark.parametrize(
    "lopt",
    [
        pytest.param(LearnableAdam(rules=ADAM_LIKE), id="learnable_adam"),
        pytest.param(SMALL.lopt, id="small_fc", marks=pytest.mark.slow),
    ],
)
def test_it_equals_finite_differences_in_float64(lopt):
    """On a quadratic: from the beginning, and from a state with a history."""
    problem = dataclasses.replace(SMALL, lopt=lopt)
    lengths = EpisodeLengths(2 * STEPS, 2 * STEPS, staggered=False)
    es = backpropagation(num_particles=1, truncation=STEPS, lengths=lengths)
    with jax.enable_x64(True):
        theta = in_float64(lopt.init(jax.random.key(0)))
        dataset = in_float64(SMALL.task.load_data())
        state = in_float64(es.init(problem, theta))
        step = jax.jit(lambda t, s, k: estimated(es, problem, t, s, dataset, k))
        flat, unravel = ravel_pytree(theta)
        for window in range(2):
            key = jax.random.key(window)
            estimate, after = step(theta, state, key)
            grad = ravel_pytree(estimate.grad)[0]
            assert grad.dtype == jnp.float64
            h = 3e-5  # losses near 1: rounding and curvature then both weigh below 1e-6
            for seed in range(4):
                along = jax.random.normal(jax.random.key(seed), flat.shape, flat.dtype)
                ends = [
                    step(unravel(flat + sign * h * along), state, key)[0].loss
                    for sign in (1.0, -1.0)
                ]
                rise = float(ends[0] - ends[1]) / (2 * h)
                assert abs(rise) > 1e-5
                assert float(grad @ along) == pytest.approx(rise, rel=1e-6)
            assert int(after.episodes.step[0, 0]) == STEPS * (window + 1)
            state = after


@pytest.fixture(scope="module")
def remat():
    """A window's gradient and bytes of its program, without and with `remat`."""
    problem = dataclasses.replace(SMALL, task=Quadratic(dimension=256))
    theta, dataset = SMALL.lopt.init(jax.random.key(0)), problem.task.load_data()
    lengths = EpisodeLengths(64, 64)
    found = {}
    for wanted in (False, True):
        es = backpropagation(truncation=64, lengths=lengths, remat=wanted)
        step = functools.partial(estimated, es, problem)
        arguments = (theta, es.init(problem, theta), dataset, jax.random.key(1))
        program = jax.jit(step).lower(*arguments).compile()
        estimate, _ = program(*arguments)
        used = program.memory_analysis().temp_size_in_bytes
        found[wanted] = ravel_pytree(estimate.grad)[0], used
    return found


@pytest.mark.optimized
def test_rematerialization_changes_rounding_and_memory_alone(remat):
    (plain, much), (again, little) = remat[False], remat[True]
    scale = float(jnp.abs(plain).max())
    assert scale > 0
    np.testing.assert_allclose(again, plain, atol=2e-6 * scale)
    # A step keeps 256 × (1 + state) numbers, not the network's units for each of them.
    assert little < much / 3, (little, much)


def test_episodes_are_those_of_evolution_strategies():
    lengths = EpisodeLengths(WINDOW, LENGTH)
    own = backpropagation(lengths=lengths)
    es = PES(num_pairs=2, chunk=2, truncation=WINDOW, lengths=lengths, sigma=1e-18)
    states = [begin(own, NOISY), begin(es, NOISY)]
    ends = set()
    for key in window_keys(seed=4, windows=5):
        (_, mine), (_, theirs) = (
            advance(e, NOISY, s, key) for e, s in zip((own, es), states, strict=True)
        )
        states = [mine, theirs]
        for a, b in zip(mine.episodes, theirs.episodes, strict=True):
            np.testing.assert_allclose(a[:, 0], b[:, 0], rtol=1e-6)
        ends |= {tuple(np.asarray(mine.episodes.length[:, 0]).tolist())}
        same = jax.random.key_data(own.data_keys(key))
        np.testing.assert_array_equal(same, jax.random.key_data(es.data_keys(key)))
    assert len(ends) > 1
    assert own.num_members == 2 and es.num_members == 4


@dataclasses.dataclass(frozen=True)
class HalfFrozen(Toy):
    frozen = ("c",)


def test_what_is_frozen_has_no_gradient_and_what_overflows_counts_as_zero():
    es, toy = backpropagation(), HalfFrozen()
    theta = {"a": THETA["a"], "c": jnp.ones(2)}
    _, state = advance(es, toy, begin(es, toy, theta), jax.random.key(0), theta)
    clean, _ = advance(es, toy, state, jax.random.key(1), theta)
    assert np.all(np.asarray(clean.grad["c"]) == 0.0)
    assert np.all(np.asarray(clean.terms["a"]) != 0.0)
    assert float(clean.metrics["nonfinite"]) == 0.0
    x = state.episodes.x.at[1].set(jnp.inf)
    poisoned = state._replace(episodes=state.episodes._replace(x=x))
    dirty, _ = advance(es, toy, poisoned, jax.random.key(1), theta)
    assert np.all(np.asarray(dirty.terms["a"])[1] == 0.0)
    np.testing.assert_array_equal(dirty.terms["a"][0], clean.terms["a"][0])
    assert float(dirty.metrics["nonfinite"]) == 0.5


@pytest.mark.slow
def test_it_meta_trains():
    task, lopt = Quadratic(dimension=4), LearnableSGD(rules=SGD_LIKE)
    es = Backpropagation.full(10, num_particles=2, chunk=2)
    outer = OuterOptimizer(learning_rate=0.3, warmup_steps=0, weight_decay=0.0)
    meta = MetaTraining.on(task, lopt, es, outer, num_steps=30)
    state, data, losses = meta.init(), task.load_data(), []
    for _ in range(30):
        state, metrics = meta.step(state, {0: data})
        losses.append(float(metrics["meta_loss"]))
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_particles": 0}, "num_particles = 0"),
        ({"truncation": 0}, "truncation = 0"),
        ({"num_particles": 4, "chunk": 3}, "chunk = 3 must divide num_particles = 4"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        backpropagation(**fields)
