"""What all estimators do with their particles: begin episodes, advance them, report.

The members of a particle share variant and initialization, and are renewed together, in
the window after the one in which their episode ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lopt.base import Theta
from metatrain.estimators.base import Parts
from metatrain.estimators.particles import Reduce, over_particles, sum_over_particles
from metatrain.inner_training import InnerTraining, Unrolled
from metatrain.keys import stream
from metatrain.truncation import EpisodeLengths
from metatrain.unroll import Windowed

Runs = tuple[Any, Any]
"""A particle's variant, and its members' episodes, `[M]` in front."""


class Inputs(NamedTuple):
    """What all particles share in a window."""

    theta: Theta
    dataset: Any
    key: jax.Array
    outer_step: int | jax.Array


Metrics = dict[str, jax.Array]
Window = Callable[[Inputs, Any, jax.Array], tuple[Any, Theta, Metrics]]
"""Advances the particle of an index: its next state, its term, its metrics."""


def check_counts(estimator: Any, particles: str, *others: str) -> None:
    """Checks that counts are positive and that chunks divide the particles.

    Args:
        estimator: with fields `truncation` and `chunk`.
        particles: name of the field with the number of particles.
        others: names of more fields that must be positive.

    Raises:
        ValueError: naming the field.
    """
    for name in (particles, "truncation", "chunk", *others):
        value = getattr(estimator, name)
        if value < 1:
            raise ValueError(f"{name} = {value} must be a positive whole number")
        if value > 10**6:
            raise ValueError(f"{name} = {value} must be at most 10⁶")
    num, chunk = getattr(estimator, particles), estimator.chunk
    if num % min(chunk, num):
        raise ValueError(f"chunk = {chunk} must divide {particles} = {num}")


def unbegun(problem: InnerTraining, theta: Theta, num: int, members: int) -> Runs:
    """Returns runs of `num` particles, `[N]` in front, with episodes of length 0.

    The first window renews them as it renews finished ones, so initialization is
    compiled once.
    """

    def shapes() -> Runs:
        key = jax.random.key(0)
        variant = problem.sample(key)
        return variant, problem.start(theta, variant, key, jnp.int32(0))

    def zeros(tree: Any, *front: int) -> Any:
        return jax.tree.map(lambda x: jnp.zeros((*front, *x.shape), x.dtype), tree)

    variant, episode = jax.eval_shape(shapes)
    return zeros(variant, num), zeros(episode, num, members)


def ended(episodes: Any) -> jax.Array:
    """Returns whether a particle's episode has ended or never began: `[]` bool."""
    return episodes.step[0] >= episodes.length[0]


def renewed(
    problem: InnerTraining,
    theta: Theta,
    runs: Runs,
    key: jax.Array,
    outer_step: int | jax.Array,
    *,
    lengths: EpisodeLengths,
    truncation: int,
) -> Runs:
    """Begins a particle's next episode if the last has ended or none ever began.

    Args:
        problem: what is unrolled.
        theta: meta-parameters.
        runs: where they stand.
        key: of the particle, or of the task that several share.
        outer_step: `[]` int32.
        lengths: of episodes; a particle's first one may be cut short.
        truncation: inner steps T of a window.
    """
    episodes = runs[1]
    first = episodes.length[0] == 0
    key = stream(key, "episode")
    length_key, stagger_key, start_key = jax.random.split(key, 3)
    length = lengths.sample(length_key, truncation, outer_step)
    shortened = lengths.stagger(stagger_key, length, truncation)
    length = jnp.where(first, shortened, length)
    variant = problem.sample(stream(key, "variant"))
    episode = problem.start(theta, variant, start_key, length)
    members = episodes.step.shape[0]
    fresh = variant, jax.tree.map(lambda x: jnp.stack([x] * members), episode)
    begins = ended(episodes)
    return jax.tree.map(lambda new, old: jnp.where(begins, new, old), fresh, runs)


def advanced(
    window: Window,
    inputs: Inputs,
    state: Any,
    first: int | jax.Array,
    *,
    chunk: int,
    reduce: Reduce = "ordered",
) -> tuple[Parts, Any]:
    """Advances particles by a window (see `Estimator.advance`).

    Args:
        window: advances one particle.
        inputs: what they share; of `Windowed` data, each is given its own plan.
        state: the particles, `[N]` in front.
        first: `[]` int32, index of the first of these particles.
        chunk: particles of one vmapped program.
        reduce: psum returns only the sum of the terms.
    """
    plans = None
    if isinstance(inputs.dataset, Windowed):
        resident, plans = inputs.dataset
        inputs = inputs._replace(dataset=resident)
    num = jax.tree.leaves(state)[0].shape[0]

    def one(inputs: Inputs, particle: Any) -> Any:
        particle, index, plan = particle
        if plan is not None:
            inputs = inputs._replace(dataset=Windowed(inputs.dataset, plan))
        return window(inputs, particle, index)

    arguments = (inputs, (state, first + jnp.arange(num), plans))
    if reduce == "psum":

        def parted(inputs: Inputs, particle: Any) -> Any:
            state, term, metrics = one(inputs, particle)
            return (state, metrics), term

        (state, metrics), total = sum_over_particles(parted, *arguments, chunk=chunk)
        return Parts(None, jax.tree.map(lambda x: x[None], total), metrics), state
    state, terms, metrics = over_particles(one, *arguments, chunk=chunk)
    return Parts(terms, None, metrics), state


def metrics_of(unrolled: Unrolled, episodes: Any, nonfinite: jax.Array) -> Metrics:
    """Returns metrics of one particle's window; `episodes` after it, `[M]` in front."""
    return {
        "meta_loss": unrolled.losses.mean(),
        "objective": unrolled.contributions.mean(),
        "diverged": unrolled.diverged.astype(jnp.float32).mean(),
        "finished": ended(episodes).astype(jnp.float32),
        "episode_length": episodes.length[0].astype(jnp.float32),
        "nonfinite": nonfinite.astype(jnp.float32),
    }


def particle_key(key: jax.Array, index: jax.Array) -> jax.Array:
    """Returns the key of one particle, or of one task."""
    return jax.random.fold_in(key, index)


def data_key(key: jax.Array) -> jax.Array:
    """Returns the key of the batches, given that of a particle or task."""
    return stream(key, "data")
