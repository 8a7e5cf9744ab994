"""What meta-training perturbs: a task, trained by a learned optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from lopt.base import LearnedOptimizer, Theta, frozen_parts
from lopt.per_parameter.precision import Precision
from lopt.wrappers import Bfloat16Features
from metatrain import inner
from metatrain.estimators.base import Unrolled, Windowed
from metatrain.expert import Expert, Guided
from metatrain.inner import AnyState, TrackedState
from metatrain.objective import Objective
from metatrain.unroll import unroll
from tasks.base import Dataset, Parametric, Task
from tasks.variation import Variant, Variation


@configuration
class InnerTraining:
    """The `Problem` of meta-training: a task trained by a learned optimizer."""

    task: Task
    lopt: LearnedOptimizer
    objective: Objective
    variation: Variation = Variation()
    still: tuple[str, ...] = ()
    """Parts of θ that are frozen beside the optimizer's own."""
    expert: Expert | None = None
    """Whom the optimizer follows and imitates at first."""
    precision: Precision = "float32"
    """What the model computes in."""
    feature_precision: Precision = "float32"
    """What the optimizer's per-parameter networks multiply in."""

    def __post_init__(self) -> None:
        self.variation.check(self.task)
        if self.feature_precision == "bfloat16":
            try:
                Bfloat16Features(self.lopt).check(self.task.specs())
            except ValueError as error:
                raise ValueError(
                    f"feature_precision = 'bfloat16': {error}; leave it at float32"
                ) from None

    def sample(self, key: jax.Array) -> Variant:
        """What is particular about one episode (see `Problem.sample`)."""
        return self.variation.sample(self.task, key)

    def start(
        self, theta: Theta, variant: Variant, key: jax.Array, length: jax.Array
    ) -> AnyState:
        """A new episode (see `Problem.start`)."""
        rule = self._rule
        lopt = rule if self.expert is None else Guided(rule, self.expert)
        episode = inner.start(self.task, lopt, theta, key, length, variant)
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
        num_steps: int,
        remat: bool = False,
        *,
        outer_step: int | jax.Array = 0,
    ) -> Unrolled:
        """Advances an episode (see `Problem.unroll`)."""
        window = None
        if isinstance(dataset, Windowed):
            dataset, window = dataset

        def run(lopt: LearnedOptimizer, episode: AnyState) -> Any:
            return unroll(
                self.task,
                lopt,
                theta,
                episode,
                dataset,
                key,
                num_steps,
                self.objective.split,
                variant,
                window,
                remat,
                self.precision,
            )

        if self.expert is None:
            after, losses, _ = run(self._rule, episode)
            return self._judged(episode, after, losses)
        after, losses, imitation = self._accompanied(run, episode, outer_step)
        unrolled = self._judged(episode, after, losses)
        return unrolled._replace(contributions=unrolled.contributions + imitation)

    def _judged(self, before: AnyState, after: AnyState, losses: jax.Array) -> Unrolled:
        """What a window came to by the objective, from its losses `[T]` in nats."""
        losses = self.objective.normalize(losses, self._loss_at_chance)
        tracked = before.minimum if isinstance(before, TrackedState) else None
        contributions, minimum = self.objective.contributions(
            losses, before.step, before.length, tracked
        )
        if isinstance(after, TrackedState) and minimum is not None:
            after = after._replace(minimum=minimum)
        diverged = self.objective.diverged(losses[-1])
        return Unrolled(after, contributions, losses, diverged)

    def _accompanied(
        self, run: Any, episode: AnyState, outer_step: int | jax.Array
    ) -> tuple[AnyState, jax.Array, jax.Array]:
        """A window with the expert, or without it once its time is over.

        The branch is taken by all particles alike, and the second one is the program
        of a run that never had an expert: it costs no more, and rounds no differently.

        Returns:
            The episode, its losses `[T]` in nats, what imitation contributes `[T]`.
        """
        assert self.expert is not None
        ramp = self.expert.ramp(outer_step)
        guided = Guided(self._rule, self.expert, ramp)

        def together(episode: AnyState) -> tuple[AnyState, jax.Array, jax.Array]:
            episode, losses, aux = run(guided, episode)
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
        low = self.feature_precision == "bfloat16"
        return Bfloat16Features(self.lopt) if low else self.lopt

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parts of θ that are not perturbed (see `metatrain.frozen`)."""
        return frozen_parts(self.lopt) + self.still

    @property
    def _loss_at_chance(self) -> float:
        if isinstance(self.task, Parametric):
            return self.task.loss_at_chance_over_configs()
        return self.task.loss_at_chance
