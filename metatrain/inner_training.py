"""What meta-training perturbs: a task, trained by a learned optimizer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lopt.base import LearnedOptimizer, Theta, frozen_parts
from metatrain import inner
from metatrain.estimators.base import Unrolled, Windowed
from metatrain.expert import Expert, Guided
from metatrain.inner import InnerState
from metatrain.objective import Objective
from metatrain.unroll import unroll
from tasks.base import Dataset, Parametric, Task
from tasks.variation import Variant, Variation


@dataclasses.dataclass(frozen=True)
class InnerTraining:
    """The `Problem` of meta-training: a task trained by a learned optimizer."""

    task: Task
    lopt: LearnedOptimizer
    objective: Objective
    variation: Variation = Variation()
    still: tuple[str, ...] = ()
    """Parts of θ that are frozen beside the optimizer's own."""
    expert: Expert | None = None

    def __post_init__(self) -> None:
        self.variation.check(self.task)

    def sample(self, key: jax.Array) -> Variant:
        """What is particular about one episode (see `Problem.sample`)."""
        return self.variation.sample(self.task, key)

    def start(
        self, theta: Theta, variant: Variant, key: jax.Array, length: jax.Array
    ) -> InnerState:
        """A new episode (see `Problem.start`)."""
        lopt = self.lopt if self.expert is None else Guided(self.lopt, self.expert)
        episode = inner.start(self.task, lopt, theta, key, length, variant)
        if self.objective.remembers_minimum:
            episode = episode._replace(minimum=jnp.float32(self.objective.cap))
        return episode

    def unroll(
        self,
        theta: Theta,
        episode: InnerState,
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

        def run(lopt: LearnedOptimizer, episode: InnerState) -> Any:
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
            )

        before, imitation = episode, None
        if self.expert is None:
            episode, losses, _ = run(self.lopt, episode)
        else:
            episode, losses, imitation = self._accompanied(run, episode, outer_step)
        losses = self.objective.normalize(losses, self._loss_at_chance)
        contributions, minimum = self.objective.contributions(
            losses, before.step, before.length, before.minimum
        )
        if imitation is not None:
            contributions = contributions + imitation
        return Unrolled(
            episode._replace(minimum=minimum),
            contributions,
            losses,
            self.objective.diverged(losses[-1]),
        )

    def _accompanied(
        self, run: Any, episode: InnerState, outer_step: int | jax.Array
    ) -> tuple[InnerState, jax.Array, jax.Array]:
        """A window with the expert, or without it once its time is over.

        The branch is taken by all particles alike, and the second one is the program
        of a run that never had an expert: it costs no more, and rounds no differently.

        Returns:
            The episode, its losses `[T]` in nats, what imitation contributes `[T]`.
        """
        assert self.expert is not None
        ramp = self.expert.ramp(outer_step)
        guided = Guided(self.lopt, self.expert, ramp)

        def together(episode: InnerState) -> tuple[InnerState, jax.Array, jax.Array]:
            episode, losses, aux = run(guided, episode)
            return episode, losses, aux["imitation"]

        def alone(episode: InnerState) -> tuple[InnerState, jax.Array, jax.Array]:
            both = episode.opt_state
            episode, losses, _ = run(
                self.lopt, episode._replace(opt_state=both.learned)
            )
            both = both._replace(learned=episode.opt_state)
            none = jnp.zeros(losses.shape, jnp.float32)
            return episode._replace(opt_state=both), losses, none

        return jax.lax.cond(ramp > 0, together, alone, episode)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parts of θ that are not perturbed (see `metatrain.frozen`)."""
        return frozen_parts(self.lopt) + self.still

    @property
    def _loss_at_chance(self) -> float:
        if isinstance(self.task, Parametric):
            return self.task.loss_at_chance_over_configs()
        return self.task.loss_at_chance
