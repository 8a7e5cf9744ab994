"""PES on a toy whose meta-gradient is known in closed form.

The toy is a linear state x ← a·x + w·θ with losses x², so an episode's loss is
quadratic in θ and independent noise per window leaves its gradient unchanged: what PES
must estimate is the gradient itself. Truncated ES does not see that θ moves the state
with which later windows begin.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metatrain.estimators.base import Unrolled
from metatrain.estimators.es import EvolutionStrategy
from metatrain.keys import stream
from metatrain.truncation import EpisodeLengths

DECAY, WINDOW, WINDOWS = 0.9, 3, 4
WEIGHTS = jnp.array([0.5, -0.3])
THETA = {"a": jnp.array([0.7, 0.2])}


class ToyState(NamedTuple):
    x: jax.Array
    step: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class Toy:
    """A `Problem` without data; the loss is not normalized."""

    def sample(self, key):
        return ()

    def start(self, theta, variant, key, length):
        return ToyState(jnp.float32(0.0), jnp.int32(0), jnp.asarray(length, jnp.int32))

    def unroll(self, theta, episode, variant, dataset, key, num_steps, *, outer_step=0):
        def body(state, _):
            x = DECAY * state.x + WEIGHTS @ theta["a"]
            return state._replace(x=x, step=state.step + 1), x**2

        episode, losses = jax.lax.scan(body, episode, None, length=num_steps)
        return Unrolled(episode, losses, losses, losses[-1] > 1e6)


def episode_gradient():
    """The gradient of the mean loss of an episode of WINDOWS windows."""

    def loss(theta):
        toy = Toy()
        state = toy.start(theta, (), None, 0)
        return toy.unroll(theta, state, (), None, None, WINDOW * WINDOWS).losses.mean()

    return jax.grad(loss)(THETA)["a"]


def strategy(**fields):
    length = WINDOW * WINDOWS
    lengths = EpisodeLengths(length, length, staggered=False)
    defaults = dict(
        num_pairs=4096, chunk=4096, truncation=WINDOW, sigma=0.1, lengths=lengths
    )
    return EvolutionStrategy(**(defaults | fields))


def episode_terms(es, seed):
    """Each pair's terms summed over one episode and divided by its windows: [N, 2]."""
    toy = Toy()
    state = es.init(toy, THETA)
    step = jax.jit(lambda s, k: es.estimate(toy, THETA, s, None, k))
    total = 0.0
    for window in range(WINDOWS):
        estimate, state = step(state, jax.random.fold_in(jax.random.key(seed), window))
        total = total + estimate.terms["a"]
    return np.asarray(total) / WINDOWS


@pytest.fixture(scope="module")
def errors():
    """Distance from the true gradient in standard errors, by estimator."""
    truth = np.asarray(episode_gradient())
    distances = {}
    for credit in ("accumulated", "fresh", "episode"):
        terms = episode_terms(strategy(credit=credit), seed=1)
        standard_error = terms.std(axis=0, ddof=1) / np.sqrt(len(terms))
        distances[credit] = np.abs(terms.mean(axis=0) - truth) / standard_error
    return distances


@dataclasses.dataclass(frozen=True)
class HalfFrozen(Toy):
    frozen = ("b",)


@pytest.mark.parametrize("credit", ["accumulated", "fresh", "episode"])
def test_what_is_frozen_is_not_perturbed_and_has_no_gradient(credit):
    es, toy = strategy(credit=credit, num_pairs=3, chunk=3), HalfFrozen()
    theta = {"a": THETA["a"], "b": jnp.ones(3)}
    free = {"a": THETA["a"], "b": jnp.ones(0)}
    step = jax.jit(lambda t, s, k: es.estimate(toy, t, s, None, k))
    state, estimates = es.init(toy, theta), []
    for window in range(2):
        key = jax.random.fold_in(jax.random.key(3), window)
        estimate, state = step(theta, state, key)
        estimates.append(estimate)
    assert all((np.asarray(e.grad["b"]) == 0).all() for e in estimates)
    assert all((np.asarray(e.grad["a"]) != 0).all() for e in estimates)
    assert (np.asarray(state.credit)[:, 2:] == 0).all()
    with pytest.raises(ValueError, match=r"theta has no part .b."):
        es.estimate(toy, {"a": free["a"]}, es.init(Toy(), THETA), None, key)


def test_pes_is_unbiased(errors):
    assert np.all(errors["accumulated"] < 4.0), errors


def test_noise_reuse_es_is_unbiased(errors):
    assert np.all(errors["episode"] < 4.0), errors


def test_truncated_es_is_visibly_biased(errors):
    assert np.all(errors["fresh"] > 4.0), errors


def test_the_last_window_is_credited_with_the_whole_episode_and_a_reset_forgets_it():
    es, toy = strategy(num_pairs=3, chunk=3), Toy()
    state = es.init(toy, THETA)
    step = jax.jit(lambda s, k: es.estimate(toy, THETA, s, None, k))
    noises = []
    for window in range(WINDOWS + 1):
        key = jax.random.fold_in(jax.random.key(5), window)
        before = np.asarray(state.episodes.x)
        estimate, state = step(state, key)
        noise = np.stack(
            [
                es.sigma
                * jax.random.normal(stream(jax.random.fold_in(key, i), "noise"), (2,))
                for i in range(3)
            ]
        )
        noises.append(noise)
        # After the episode's last window both members begin anew, at x = 0.
        start = np.zeros_like(before) if window in (0, WINDOWS) else before
        losses = np.stack(
            [member_losses(start[:, 0], noise), member_losses(start[:, 1], -noise)]
        )
        credit = noise if window == WINDOWS else np.sum(noises, axis=0)
        expected = (losses[0] - losses[1])[:, None] * credit / (2 * es.sigma**2)
        np.testing.assert_allclose(estimate.terms["a"], expected, rtol=2e-3, atol=1e-5)


def member_losses(x, noise):
    """Mean loss of one window from states [N] at THETA + noise [N, 2]."""
    x, losses = np.array(x, np.float64), []
    push = (np.asarray(THETA["a"]) + noise) @ np.asarray(WEIGHTS)
    for _ in range(WINDOW):
        x = DECAY * x + push
        losses.append(x**2)
    return np.mean(losses, axis=0)


def test_noise_reuse_keeps_one_noise_per_episode():
    es, toy = strategy(num_pairs=2, chunk=2, credit="episode"), Toy()
    state = es.init(toy, THETA)
    credits = []
    for window in range(WINDOWS + 1):
        key = jax.random.fold_in(jax.random.key(5), window)
        _, state = es.estimate(toy, THETA, state, None, key)
        credits.append(np.asarray(state.credit))
    for credit in credits[1:WINDOWS]:
        np.testing.assert_array_equal(credit, credits[0])
    assert not np.any(credits[WINDOWS] == credits[0])


def test_chunks_change_nothing_but_rounding():
    toy = Toy()
    grads = []
    for chunk in (8, 2):
        es = strategy(num_pairs=8, chunk=chunk)
        state = es.init(toy, THETA)
        estimate, _ = es.estimate(toy, THETA, state, None, jax.random.key(1))
        grads.append(np.asarray(estimate.grad["a"]))
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-5)
    assert np.all(grads[0] != 0)


def test_gradient_is_the_mean_of_the_terms():
    es, toy = strategy(num_pairs=8, chunk=8), Toy()
    state = es.init(toy, THETA)
    estimate, _ = es.estimate(toy, THETA, state, None, jax.random.key(1))
    np.testing.assert_allclose(
        estimate.grad["a"], np.mean(estimate.terms["a"], axis=0), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_pairs": 0}, "num_pairs = 0"),
        ({"truncation": -1}, "truncation = -1"),
        ({"sigma": 0.0}, "sigma = 0.0"),
        ({"sigma": float("nan")}, "sigma = nan"),
        ({"num_pairs": 8, "chunk": 3}, "chunk = 3 must divide num_pairs = 8"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        strategy(**fields)
