"""Backpropagation through unrolls: exact derivatives, for small problems, as a control.

In each window every particle takes the derivative of its mean loss over T steps with
respect to θ, and the estimate is the mean over particles. The state in which a window
begins counts as a constant, so this is truncated backpropagation, biased like truncated
ES. With windows as long as the longest episode it is full backpropagation, the exact
derivative of an episode's mean loss.

Where training is chaotic, derivatives grow exponentially with T, and their variance
with them (Metz et al., arXiv:1810.10180); evolution strategies smooth that away. A
derivative that overflows counts as zero as a whole, and is counted.

Memory limits T. With `remat` only the inner state before each step is kept, and the
step is recomputed on the backward pass. Derivatives of learned optimizers are those of
their plain form on every backend (see `lopt.per_parameter.forms`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from lopt.base import Theta, frozen_parts
from metatrain.estimators import base
from metatrain.estimators.base import Estimator, Inputs, Metrics
from metatrain.frozen import keep_frozen
from metatrain.inner_training import InnerTraining, Unrolled
from metatrain.truncation import EpisodeLengths


class UnrollState(NamedTuple):
    """One unroll; `[N]` in front of everything in an estimator's state."""

    variant: Any  # what is particular about the episode
    episodes: Any  # its one member's episode, `[1]` in front


@configuration
class Backpropagation(Estimator):
    """Truncated or full backpropagation through windows of an unroll."""

    num_particles: int = 8
    """Unrolls N."""
    remat: bool = True
    """Whether steps are recomputed on the backward pass, so that memory holds only an
    inner state for each step."""

    def __post_init__(self) -> None:
        base.check_counts(self, "num_particles")

    @classmethod
    def full(cls, length: int, **fields: Any) -> Self:
        """Returns full backpropagation, through episodes of `length` inner steps."""
        lengths = EpisodeLengths(length, length, staggered=False)
        return cls(**fields, truncation=length, lengths=lengths)

    @property
    def particles(self) -> int:
        """Number of unrolls."""
        return self.num_particles

    def init(self, problem: InnerTraining, theta: Theta) -> UnrollState:
        """See `Estimator.init`; the particles are single unrolls."""
        return UnrollState(*self.unbegun(problem, theta, members=1))

    def window(
        self,
        problem: InnerTraining,
        inputs: Inputs,
        particle: UnrollState,
        index: jax.Array,
    ) -> tuple[UnrollState, Theta, Metrics]:
        """See `Estimator.window`; the particle is a single unroll."""
        key = self.task_key(inputs.key, index)
        variant, members = self.renewed(problem, inputs, tuple(particle), key)
        episode = jax.tree.map(lambda x: x[0], members)

        def loss(theta: Theta) -> tuple[jax.Array, Unrolled]:
            unrolled = problem.unroll(
                theta,
                episode,
                variant,
                inputs.dataset,
                base.data_key(key),
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
        metrics = base.metrics_of(unrolled, members, ~finite)
        return UnrollState(variant, members), grad, metrics
