"""What meta-training perturbs: a task, trained by a learned optimizer."""

from __future__ import annotations

import dataclasses

import jax

from lopt.base import LearnedOptimizer, Theta, frozen_parts
from metatrain import inner
from metatrain.estimators.base import Unrolled, Windowed
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

    def __post_init__(self) -> None:
        self.variation.check(self.task)

    def sample(self, key: jax.Array) -> Variant:
        """What is particular about one episode (see `Problem.sample`)."""
        return self.variation.sample(self.task, key)

    def start(
        self, theta: Theta, variant: Variant, key: jax.Array, length: jax.Array
    ) -> InnerState:
        """A new episode (see `Problem.start`)."""
        return inner.start(self.task, self.lopt, theta, key, length, variant)

    def unroll(
        self,
        theta: Theta,
        episode: InnerState,
        variant: Variant,
        dataset: Dataset | Windowed,
        key: jax.Array,
        num_steps: int,
        remat: bool = False,
    ) -> Unrolled:
        """Advances an episode (see `Problem.unroll`)."""
        window = None
        if isinstance(dataset, Windowed):
            dataset, window = dataset
        episode, losses, _ = unroll(
            self.task,
            self.lopt,
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
        losses = self.objective.normalize(losses, self._loss_at_chance)
        return Unrolled(episode, losses, losses, self.objective.diverged(losses[-1]))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parts of θ that are not perturbed (see `metatrain.frozen`)."""
        return frozen_parts(self.lopt) + self.still

    @property
    def _loss_at_chance(self) -> float:
        if isinstance(self.task, Parametric):
            return self.task.loss_at_chance_over_configs()
        return self.task.loss_at_chance
