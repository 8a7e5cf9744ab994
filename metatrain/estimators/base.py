"""The base of meta-gradient estimators.

An estimator advances particles by windows of T inner steps and averages their terms. A
particle is one antithetic pair, or one unroll, with a key of its own. Its members
share variant and initialization, and begin their next episode together, in the window
after the one in which the last ended.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from configuration.ranges import check_range
from lopt.base import Theta
from metatrain.estimators.particles import over_particles
from metatrain.inner_training import InnerTraining, Unrolled
from metatrain.keys import stream
from metatrain.truncation import EpisodeLengths
from metatrain.unroll import Windowed

Metrics = dict[str, jax.Array]
Runs = tuple[Any, Any]
"""A particle's variant, and its members' episodes, `[M]` in front."""


class Inputs(NamedTuple):
    """Inputs of a window that all particles share."""

    theta: Theta
    dataset: Any
    key: jax.Array
    outer_step: int | jax.Array  # [] int32, outer steps done before


class Estimate(NamedTuple):
    """A meta-gradient and its metrics."""

    grad: Theta
    loss: jax.Array  # [] mean normalized loss over all members and steps
    metrics: Metrics
    terms: Theta | None  # [N, ...] terms of the particles, unless they are only summed


class Parts(NamedTuple):
    """Contributions of particles to an estimate; all devices' parts make one."""

    terms: Theta | None  # [N, ...] each particle's term
    total: Theta | None  # [1, ...] their sum, where terms are only summed
    metrics: Metrics  # [N]

    def estimate(self) -> Estimate:
        """Returns the mean over all particles, in their order."""
        metrics = jax.tree.map(jnp.mean, self.metrics)
        if self.terms is not None:
            grad = jax.tree.map(lambda x: jnp.mean(x, axis=0), self.terms)
        else:
            num = jax.tree.leaves(self.metrics)[0].shape[0]
            grad = jax.tree.map(lambda x: x[0] / num, self.total)
        return Estimate(grad, metrics["meta_loss"], metrics, self.terms)


@configuration
class Estimator(abc.ABC):
    """Estimates meta-gradients from windows of unrolls; frozen, static under `jit`."""

    truncation: int = 50
    """Inner steps T of a window; one outer step advances every particle by T."""
    chunk: int = 4
    """Particles of one vmapped program (all of them if there are fewer); chunks follow
    one another, and devices share them. Fixed, so that results do not depend on the
    devices. On CPUs 4 stay in the cache where 8 do not; one GPU may want all."""
    lengths: EpisodeLengths = EpisodeLengths()
    """Lengths of the episodes."""
    reduce = "ordered"  # no field; see `AntitheticES.reduce`

    @classmethod
    def full(cls, length: int, **fields: Any) -> Self:
        """Returns the estimator on whole episodes, windows of `length` inner steps."""
        lengths = EpisodeLengths(length, length, staggered=False)
        return cls(**fields, truncation=length, lengths=lengths)

    @property
    @abc.abstractmethod
    def particles(self) -> int:
        """Number of particles N."""

    @property
    def num_members(self) -> int:
        """Unrolls that one estimate advances by a window each."""
        return self.particles

    @property
    def num_chunks(self) -> int:
        """Chunks of particles, which devices may share (see `metatrain.devices`)."""
        return self.particles // min(self.chunk, self.particles)

    @abc.abstractmethod
    def init(self, problem: InnerTraining, theta: Theta) -> Any:
        """Returns particles without an episode: a pytree, their number `[N]` first."""

    @abc.abstractmethod
    def window(
        self, problem: InnerTraining, inputs: Inputs, particle: Any, index: jax.Array, /
    ) -> tuple[Any, Theta, Metrics]:
        """Advances the particle of an index: its next state, its term, its metrics."""

    def task_key(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """Returns the key of a particle's task: its episodes and batches."""
        return particle_key(key, index)

    def data_keys(self, key: jax.Array) -> jax.Array:
        """Returns the keys `[N]` of the batches that `advance` draws with this key."""
        indices = jnp.arange(self.particles)
        return jax.vmap(lambda index: data_key(self.task_key(key, index)))(indices)

    def advance(
        self,
        problem: InnerTraining,
        theta: Theta,
        state: Any,
        dataset: Any,
        key: jax.Array,
        *,
        outer_step: int | jax.Array = 0,
        first: int | jax.Array = 0,
    ) -> tuple[Parts, Any]:
        """Advances particles by one window: all of them, or those of one device.

        Args:
            problem: what is unrolled.
            theta: meta-parameters.
            state: the particles, their number in front.
            dataset: data of the problem; `Windowed` data has a plan for each particle.
            key: consumed.
            outer_step: `[]` int32, outer steps done before.
            first: `[]` int32, index of the first of these particles among all.
        """
        dataset, plans = dataset if isinstance(dataset, Windowed) else (dataset, None)
        num = jax.tree.leaves(state)[0].shape[0]

        def one(inputs: Inputs, particle: Any) -> Any:
            particle, index, plan = particle
            if plan is not None:
                inputs = inputs._replace(dataset=Windowed(inputs.dataset, plan))
            particle, term, metrics = self.window(problem, inputs, particle, index)
            return (particle, metrics), term

        inputs = Inputs(theta, dataset, key, outer_step)
        particles = (state, first + jnp.arange(num), plans)
        reduce: Any = self.reduce
        (state, metrics), terms = over_particles(
            one, inputs, particles, chunk=self.chunk, reduce=reduce
        )
        if reduce == "ordered":
            return Parts(terms, None, metrics), state
        return Parts(None, jax.tree.map(lambda x: x[None], terms), metrics), state

    def unbegun(self, problem: InnerTraining, theta: Theta, members: int) -> Runs:
        """Returns runs of all particles, `[N]` in front, with episodes of length 0.

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
        return zeros(variant, self.particles), zeros(episode, self.particles, members)

    def renewed(
        self, problem: InnerTraining, inputs: Inputs, runs: Runs, key: jax.Array
    ) -> Runs:
        """Begins a task's next episode if the last has ended or none ever began."""
        episodes = runs[1]
        key = stream(key, "episode")
        length_key, stagger_key, start_key = jax.random.split(key, 3)
        length = self.lengths.sample(length_key, self.truncation, inputs.outer_step)
        shortened = self.lengths.stagger(stagger_key, length, self.truncation)
        length = jnp.where(episodes.length[0] == 0, shortened, length)
        variant = problem.sample(stream(key, "variant"))
        episode = problem.start(inputs.theta, variant, start_key, length)
        members = episodes.step.shape[0]
        fresh = variant, jax.tree.map(lambda x: jnp.stack([x] * members), episode)
        begins = ended(episodes)
        return jax.tree.map(lambda new, old: jnp.where(begins, new, old), fresh, runs)


def check_counts(estimator: Estimator, *names: str) -> None:
    """Checks counts, whose field names begin with that of the particles.

    Raises:
        ValueError: naming the field.
    """
    for name in (*names, "truncation", "chunk"):
        check_range(name, getattr(estimator, name), "[1, 1e6]")
    num, chunk = estimator.particles, estimator.chunk
    if num % min(chunk, num):
        raise ValueError(f"chunk = {chunk} must divide {names[0]} = {num}")


def ended(episodes: Any) -> jax.Array:
    """Returns whether a particle's episode has ended or never began: `[]` bool."""
    return episodes.step[0] >= episodes.length[0]


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
    """Returns the key of the batches, given that of a task."""
    return stream(key, "data")
