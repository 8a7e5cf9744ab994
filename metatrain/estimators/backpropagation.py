"""Backpropagation through unrolls: exact derivatives, for small problems, as a control.

In each window every particle takes the derivative of its mean loss over T steps with
respect to θ, and the estimate is the mean over particles. The state with which a window
begins counts as a constant, so what θ did to it in earlier windows is not seen: this is
truncated backpropagation, biased like truncated ES. Windows as long as the longest
episode make it full backpropagation, the exact derivative of an episode's mean loss.

Exact does not mean useful: where training is chaotic, derivatives grow exponentially
with T, and their variance with them (Metz et al., arXiv:1810.10180). Evolution
strategies smooth that away; here it is shown as it is. A derivative that overflows
counts as zero as a whole, and is counted.

Memory is what limits T. With `remat` only the inner state before each step is kept, and
the step is computed a second time on the way back. Derivatives of learned optimizers
are those of their plain form on every backend (see `per_parameter_mlp.displacement`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from lopt.base import Theta, frozen_parts
from metatrain.estimators import episodes
from metatrain.estimators.base import Parts
from metatrain.estimators.episodes import Inputs, Metrics, data_key, particle_key
from metatrain.frozen import keep_frozen
from metatrain.inner_training import InnerTraining, Unrolled
from metatrain.truncation import EpisodeLengths


class UnrollState(NamedTuple):
    """One unroll; `[N]` in front of everything in an estimator's state."""

    variant: Any  # what is particular about the episode
    episodes: Any  # its one member's episode, `[1]` in front


@configuration
class Backpropagation:
    """Truncated or full backpropagation through windows of an unroll."""

    num_particles: int = 8
    """Unrolls N."""
    truncation: int = 50
    """Inner steps T of a window; derivatives do not reach beyond it."""
    chunk: int = 4
    """Unrolls that run in one vmapped program (all of them if there are fewer); chunks
    follow one another, and devices share them. Fixed, so that results do not depend on
    the devices."""
    lengths: EpisodeLengths = EpisodeLengths()
    """Lengths of the episodes."""
    remat: bool = True
    """Whether steps are computed anew on the way back, so that memory holds an inner
    state for each step and no more."""

    def __post_init__(self) -> None:
        episodes.check_counts(self, "num_particles")

    @classmethod
    def full(cls, length: int, **fields: Any) -> Self:
        """Backpropagation through whole episodes of `length` inner steps."""
        lengths = EpisodeLengths(length, length, staggered=False)
        return cls(**fields, truncation=length, lengths=lengths)

    @property
    def num_members(self) -> int:
        """One for each particle."""
        return self.num_particles

    @property
    def num_chunks(self) -> int:
        """Chunks of particles, which devices may share."""
        return self.num_particles // min(self.chunk, self.num_particles)

    def init(self, problem: InnerTraining, theta: Theta) -> UnrollState:
        """See `Estimator.init`; the particles are single unrolls."""
        runs = episodes.unbegun(problem, theta, self.num_particles, members=1)
        return UnrollState(*runs)

    def advance(
        self,
        problem: InnerTraining,
        theta: Theta,
        state: UnrollState,
        dataset: Any,
        key: jax.Array,
        *,
        outer_step: int | jax.Array = 0,
        first: int | jax.Array = 0,
    ) -> tuple[Parts, UnrollState]:
        """See `Estimator.advance`; the particles are single unrolls."""
        return episodes.advanced(
            partial(self._window, problem),
            Inputs(theta, dataset, key, outer_step),
            state,
            first,
            chunk=self.chunk,
        )

    def data_keys(self, key: jax.Array) -> jax.Array:
        """The keys `[N]` of the unrolls of `estimate` with this key."""
        indices = jnp.arange(self.num_particles)
        return jax.vmap(lambda index: data_key(particle_key(key, index)))(indices)

    def _window(
        self,
        problem: InnerTraining,
        inputs: Inputs,
        particle: UnrollState,
        index: jax.Array,
    ) -> tuple[UnrollState, Theta, Metrics]:
        """Advances one unroll by a window: the particle, its term, its metrics."""
        key = particle_key(inputs.key, index)
        variant, members = episodes.renewed(
            problem,
            inputs.theta,
            tuple(particle),
            key,
            inputs.outer_step,
            lengths=self.lengths,
            truncation=self.truncation,
        )
        episode = jax.tree.map(lambda x: x[0], members)

        def loss(theta: Theta) -> tuple[jax.Array, Unrolled]:
            unrolled = problem.unroll(
                theta,
                episode,
                variant,
                inputs.dataset,
                data_key(key),
                num_steps=self.truncation,
                remat=self.remat,
                outer_step=inputs.outer_step,
            )
            return unrolled.contributions.mean(), unrolled

        grad, unrolled = jax.grad(loss, has_aux=True)(inputs.theta)
        grad = keep_frozen(grad, frozen_parts(problem))
        finite = jnp.array([jnp.isfinite(g).all() for g in jax.tree.leaves(grad)]).all()
        grad = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grad)
        members = jax.tree.map(lambda x: x[None], unrolled.episode)
        metrics = episodes.metrics_of(unrolled, members, ~finite)
        return UnrollState(variant, members), grad, metrics
