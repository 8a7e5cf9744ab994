"""The problem of meta-training: a task, trained by a learned optimizer.

Estimators know no more of it than `sample`, `start`, `unroll` and `frozen`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from lopt.base import LearnedOptimizer, Theta, frozen_parts
from lopt.per_parameter.forms import in_precision
from metatrain import inner
from metatrain.expert import Expert, Guided
from metatrain.inner import AnyState, InnerLoop, Precisions, TrackedState
from metatrain.objective import Objective
from metatrain.unroll import Windowed, unroll
from tasks.base import Dataset, Parametric, Task
from tasks.variation import Variant, Variation

Run = Callable[..., tuple[AnyState, jax.Array, dict[str, jax.Array]]]


class Unrolled(NamedTuple):
    """Outcome of one window of an episode; every number in it is finite."""

    episode: Any  # state after the window
    contributions: jax.Array  # [T]; their mean over an episode is its objective
    losses: jax.Array  # [T] normalized losses, for the record
    diverged: jax.Array  # [] bool


@configuration
class InnerTraining:
    """A task trained by a learned optimizer, judged by an objective."""

    task: Task
    lopt: LearnedOptimizer
    objective: Objective
    variation: Variation = Variation()
    still: tuple[str, ...] = ()
    """Parts of θ that are frozen besides the optimizer's own."""
    expert: Expert | None = None
    """Expert optimizer for early imitation; None disables it."""
    precision: Precisions = Precisions()

    def __post_init__(self) -> None:
        self.variation.check(self.task)
        if self.precision.features == "bfloat16":
            try:
                in_precision(self.lopt, "bfloat16")
            except ValueError as error:
                raise ValueError(
                    f"feature_precision = 'bfloat16': {error}; leave it at float32"
                ) from None

    def sample(self, key: jax.Array) -> Variant:
        """Samples the variant of one episode, which both members of a pair share."""
        return self.variation.sample(self.task, key)

    def start(
        self, theta: Theta, variant: Variant, key: jax.Array, length: jax.Array
    ) -> AnyState:
        """Starts an episode of `length` steps; independent of θ's values."""
        rule = self._rule
        lopt = rule if self.expert is None else Guided(rule, self.expert)
        loop = InnerLoop(self.task, lopt, variant)
        episode = inner.start(loop, theta, key, length)
        if self.objective.remembers_minimum:
            return TrackedState(*episode, minimum=jnp.float32(self.objective.cap))
        return episode

    def unroll(
        self,
        theta: Theta,
        episode: AnyState,
        variant: Variant,
        dataset: Dataset | Windowed,
        key: jax.Array,
        *,
        num_steps: int,
        remat: bool = False,
        outer_step: int | jax.Array = 0,
    ) -> Unrolled:
        """Advances an episode by a window.

        Args:
            theta: meta-parameters.
            episode: where it stands.
            variant: what was sampled for it.
            dataset: the task's data, all of it or this window's.
            key: of the batches.
            num_steps: inner steps of the window (`T`).
            remat: whether a derivative recomputes each step, which saves memory.
            outer_step: `[]` int32, outer steps done before this window.
        """

        def run(lopt: LearnedOptimizer, episode: AnyState, **options: Any) -> Any:
            return unroll(
                InnerLoop(self.task, lopt, variant, self.precision.model),
                theta,
                episode,
                dataset,
                key,
                num_steps=num_steps,
                split=self.objective.split,
                remat=remat,
                **options,
            )

        if self.expert is None:
            after, losses, _ = run(self._rule, episode)
            return self._judged(episode, after, losses)
        after, losses, imitation = self._accompanied(run, episode, outer_step)
        unrolled = self._judged(episode, after, losses)
        return unrolled._replace(contributions=unrolled.contributions + imitation)

    def _judged(self, before: AnyState, after: AnyState, losses: jax.Array) -> Unrolled:
        """Judges a window by the objective, given its losses `[T]`, not normalized."""
        losses = self.objective.normalize(losses, self._loss_at_chance)
        minimum = before.minimum if isinstance(before, TrackedState) else None
        contributions, minimum = self.objective.contributions(
            losses, before.step, before.length, minimum
        )
        if isinstance(after, TrackedState) and minimum is not None:
            after = after._replace(minimum=minimum)
        diverged = self.objective.diverged(losses[-1])
        return Unrolled(after, contributions, losses, diverged)

    def _accompanied(
        self, run: Run, episode: AnyState, outer_step: int | jax.Array
    ) -> tuple[AnyState, jax.Array, jax.Array]:
        """Runs a window with the expert, or without it once its time is over.

        All particles take the same branch. The second is the program of a run that
        never had an expert, so it costs no more and rounds no differently.

        Returns:
            The episode, its losses `[T]`, contributions of imitation `[T]`.
        """
        assert self.expert is not None
        ramp = self.expert.ramp(outer_step)
        guided = Guided(self._rule, self.expert, ramp)

        def imitation(state: AnyState) -> dict[str, jax.Array]:
            return {"imitation": state.opt_state.imitation}

        def together(episode: AnyState) -> tuple[AnyState, jax.Array, jax.Array]:
            episode, losses, aux = run(guided, episode, record=imitation)
            return episode, losses, aux["imitation"]

        def alone(episode: AnyState) -> tuple[AnyState, jax.Array, jax.Array]:
            both = episode.opt_state
            episode, losses, _ = run(
                self._rule, episode._replace(opt_state=both.learned)
            )
            both = both._replace(learned=episode.opt_state)
            none = jnp.zeros(losses.shape, jnp.float32)
            return episode._replace(opt_state=both), losses, none

        return jax.lax.cond(ramp > 0, together, alone, episode)

    @property
    def _rule(self) -> LearnedOptimizer:
        """The optimizer, in the precision of this training."""
        low = self.precision.features == "bfloat16"
        return in_precision(self.lopt, "bfloat16") if low else self.lopt

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parts of θ that are not perturbed (see `metatrain.frozen`)."""
        return frozen_parts(self.lopt) + self.still

    @property
    def _loss_at_chance(self) -> float:
        if isinstance(self.task, Parametric):
            return self.task.loss_at_chance_over_configs()
        return self.task.loss_at_chance
