"""A problem whose meta-gradient is known in closed form.

It is a linear state x ← a·x + w·θ with losses x², so an episode's loss is quadratic in
θ and independent noise per window leaves its gradient unchanged: what an unbiased
estimator must estimate is the gradient itself. Estimators that look at one window alone
do not see that θ moves the state with which later windows begin.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metatrain.inner_training import Unrolled
from metatrain.truncation import EpisodeLengths

DECAY, WINDOW, WINDOWS = 0.5, 3, 4
LENGTH = WINDOW * WINDOWS
WEIGHTS = jnp.array([0.5, -0.3])
THETA = {"a": jnp.array([0.7, 0.2])}
EPISODE = EpisodeLengths(LENGTH, LENGTH, staggered=False)


class ToyState(NamedTuple):
    x: jax.Array
    step: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class Toy:
    """Without data; the loss is not normalized.

    Noise of mean zero moves the beginning and each step: it changes no mean gradient,
    and shows who begins alike and who sees the same batches.
    """

    noise: float = 0.0

    def sample(self, key):
        return ()

    def start(self, theta, variant, key, length):
        x = self.noise * jax.random.normal(key) if self.noise else jnp.float32(0.0)
        return ToyState(x, jnp.int32(0), jnp.asarray(length, jnp.int32))

    def unroll(
        self,
        theta,
        episode,
        variant,
        dataset,
        key,
        *,
        num_steps,
        remat=False,
        outer_step=0,
    ):
        push = WEIGHTS @ theta["a"] + (theta["c"].sum() if "c" in theta else 0.0)
        pushes = jnp.zeros(num_steps) + push
        if self.noise:
            pushes += self.noise * jax.random.normal(key, (num_steps,))

        def body(state, push):
            x = DECAY * state.x + push
            return state._replace(x=x, step=state.step + 1), x**2

        if remat:
            body = jax.checkpoint(body)
        episode, losses = jax.lax.scan(body, episode, pushes)
        return Unrolled(episode, losses, losses, losses[-1] > 1e6)


PLAIN = Toy()


def episode_gradient(theta=THETA):
    """The gradient of the mean loss of an episode of WINDOWS windows."""

    def loss(theta):
        state = PLAIN.start(theta, (), None, 0)
        return PLAIN.unroll(
            theta, state, (), None, None, num_steps=LENGTH
        ).losses.mean()

    return jax.grad(loss)(theta)


def block_gradients():
    """Gradients of each window's mean loss by what each window adds to θ: [W, W, 2]."""

    def losses(added):
        x, means = jnp.zeros([]), []
        for window in range(WINDOWS):
            total = 0.0
            for _ in range(WINDOW):
                x = DECAY * x + WEIGHTS @ (THETA["a"] + added[window])
                total = total + x**2
            means.append(total / WINDOW)
        return jnp.stack(means)

    return np.asarray(jax.jacobian(losses)(jnp.zeros((WINDOWS, 2))), np.float64)


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(estimator, problem, theta=THETA):
    return estimator.init(problem, theta)


def estimated(estimator, problem, theta, state, dataset, key, **options):
    """The meta-gradient of one window of all particles, and the particles after it."""
    parts, state = estimator.advance(problem, theta, state, dataset, key, **options)
    return parts.estimate(), state


@functools.partial(jax.jit, static_argnums=(0, 1))
def advance(estimator, problem, state, key, theta=THETA):
    return estimated(estimator, problem, theta, state, None, key)


def window_keys(seed, windows=WINDOWS):
    return [
        jax.random.fold_in(jax.random.key(seed), window) for window in range(windows)
    ]


def windows_of(estimator, problem=PLAIN, theta=THETA, seed=1, windows=WINDOWS):
    """Every particle's terms, a leaf `[W, N, ...]` for each of θ, over one episode."""
    state = begin(estimator, problem, theta)
    terms = []
    for key in window_keys(seed, windows):
        estimate, state = advance(estimator, problem, state, key, theta)
        terms.append(jax.tree.map(np.asarray, estimate.terms))
    return jax.tree.map(lambda *x: np.stack(x).astype(np.float64), *terms)


def deviation(terms, truth, together=1):
    """How far a mean of terms `[W, N, ...]` is from the truth, in standard errors.

    `together` neighbours depend on each other; their mean counts as one.
    """
    samples = terms.mean(axis=0)
    samples = samples.reshape(-1, together, *samples.shape[1:]).mean(axis=1)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return np.abs(samples.mean(axis=0) - np.asarray(truth)) / error
