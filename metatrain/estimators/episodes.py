"""What every estimator does with its particles: begin, begin anew, advance, average.

A particle is what one key stands for: a pair of members, or a single unroll. Its
members have one variant and one beginning, and are renewed together, in the window
after the one in which they end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lopt.base import Theta
from metatrain.estimators.base import Parts, Problem, Windowed
from metatrain.estimators.particles import Reduce, over_particles, sum_over_particles
from metatrain.keys import stream
from metatrain.truncation import EpisodeLengths

Runs = tuple[Any, Any]
"""A particle's variant, and its members' episodes, `[M]` in front."""

Window = Callable[..., tuple[Any, Theta, dict[str, jax.Array]]]


def check_counts(estimator: Any, particles: str, *others: str) -> None:
    """Refuses counts that are not positive, or chunks that do not fit the particles.

    Args:
        estimator: with fields `truncation` and `chunk`.
        particles: the field that says how many particles there are.
        others: more fields that must be positive.

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


def unbegun(problem: Problem, theta: Theta, num: int, members: int) -> Runs:
    """Runs of `num` particles, `[N]` in front, whose episodes have length 0.

    They begin in the first window, as finished ones do, so initialization is traced
    and compiled once.
    """

    def shapes() -> Runs:
        key = jax.random.key(0)
        variant = problem.sample(key)
        return variant, problem.start(theta, variant, key, jnp.int32(0))

    def zeros(tree: Any, *front: int) -> Any:
        return jax.tree.map(lambda x: jnp.zeros((*front, *x.shape), x.dtype), tree)

    variant, episode = jax.eval_shape(shapes)
    return zeros(variant, num), zeros(episode, num, members)


def renewed(
    problem: Problem,
    theta: Theta,
    runs: Runs,
    lengths: EpisodeLengths,
    truncation: int,
    key: jax.Array,
    outer_step: jax.Array,
) -> Runs:
    """A particle's runs, begun anew if they have ended or never began.

    Args:
        problem: what is unrolled.
        theta: meta-parameters.
        runs: where they stand.
        lengths: of the episodes; the first one may be cut short.
        truncation: inner steps T of a window.
        key: of what is particular about the episode.
        outer_step: `[]` int32.
    """
    episodes = runs[1]
    finished = episodes.step[0] >= episodes.length[0]
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
    return jax.tree.map(lambda new, old: jnp.where(finished, new, old), fresh, runs)


def advanced(
    window: Window,
    theta: Theta,
    state: Any,
    dataset: Any,
    key: jax.Array,
    outer_step: int | jax.Array,
    first: int | jax.Array,
    *,
    chunk: int,
    reduce: Reduce = "ordered",
) -> tuple[Parts, Any]:
    """Advances particles by a window (see `Estimator.advance`).

    Args:
        window: of (θ, particle, data, key, index, outer step): the particle after the
            window, its term of the meta-gradient, its metrics.
        theta: meta-parameters.
        state: the particles, `[N]` in front.
        dataset: data; of `Windowed` data, to each particle its own.
        key: the same for all particles.
        outer_step: `[]` int32.
        first: `[]` int32, the index of the first of these particles.
        chunk: particles of one vmapped program.
        reduce: psum: only the sum of the terms is returned.
    """
    windows = None
    if isinstance(dataset, Windowed):
        dataset, windows = dataset
    num = jax.tree.leaves(state)[0].shape[0]

    def one(shared: Any, particle: Any) -> Any:
        theta, data, key, outer_step = shared
        particle, index, own = particle
        if own is not None:
            data = Windowed(data, own)
        return window(theta, particle, data, key, index, outer_step)

    arguments = (
        (theta, dataset, key, outer_step),
        (state, first + jnp.arange(num), windows),
    )
    if reduce == "psum":

        def parted(shared: Any, particle: Any) -> Any:
            state, term, metrics = one(shared, particle)
            return (state, metrics), term

        (state, metrics), total = sum_over_particles(parted, *arguments, chunk=chunk)
        return Parts(None, jax.tree.map(lambda x: x[None], total), metrics), state
    state, terms, metrics = over_particles(one, *arguments, chunk=chunk)
    return Parts(terms, None, metrics), state


def seen(unrolled: Any, episodes: Any, nonfinite: jax.Array) -> dict[str, jax.Array]:
    """Metrics of one particle's window; `episodes` after it, `[M]` in front."""
    return {
        "meta_loss": unrolled.losses.mean(),
        "objective": unrolled.contributions.mean(),
        "diverged": unrolled.diverged.astype(jnp.float32).mean(),
        "finished": (episodes.step[0] >= episodes.length[0]).astype(jnp.float32),
        "episode_length": episodes.length[0].astype(jnp.float32),
        "nonfinite": nonfinite.astype(jnp.float32),
    }


def particle_key(key: jax.Array, index: jax.Array) -> jax.Array:
    """The key of one particle, or of one task."""
    return jax.random.fold_in(key, index)


def data_key(key: jax.Array) -> jax.Array:
    """The key of the batches, of that of a particle or task."""
    return stream(key, "data")
