"""Groups of tasks, from which meta-training samples.

Tasks of different shapes cannot share a program, so each is a *group*: one task of
static shape with a weight. Traced numbers vary inside a group, anew for each episode,
at no further compilation (`tasks.variation`). A random width is a group for each width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from configuration.fields import OPEN, configuration
from tasks.base import BaseTask, Task, check_task
from tasks.modelled import ModelTask
from tasks.variation import UNVARYING, Variation

EachStep = Literal["all", "one"]


@configuration
class Group:
    """Tasks of one static shape."""

    name: str
    """Name in metrics."""
    task: Annotated[BaseTask, OPEN]
    """The task, before anything varies."""
    weight: float = 1.0
    """Weight of its meta-gradient, or of the group when one is drawn."""
    variation: Variation = Variation()
    """Differences between two of its episodes."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"name = {self.name!r} must be a word without a slash")
        if not 1e-30 <= self.weight <= 1e30:
            raise ValueError(f"weight = {self.weight} must lie in [1e-30, 1e30]")
        check_task(self.task)
        self.variation.check(self.task)


@configuration
class TaskDistribution:
    """Weighted groups of tasks."""

    groups: tuple[Group, ...]
    """At least one; names are unique."""
    each_step: EachStep = "all"
    """Groups of an outer step. all: their meta-gradients are averaged by weight; one: a
    group is drawn by weight, with the same mean, more noise, and less time per step."""

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if not names:
            raise ValueError("groups = (): a distribution has at least one")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"groups: the name {name!r} stands more than once")

    @classmethod
    def single(cls, task: Task, variation: Variation = UNVARYING) -> Self:
        """Returns a distribution of one group, of any task."""
        return cls((Group("task", task, variation=variation),))  # pyright: ignore


def over_widths(
    task: ModelTask, widths: Sequence[int], variation: Variation = UNVARYING
) -> tuple[Group, ...]:
    """Returns a group for each width of a task, all with the same weight."""
    return tuple(
        Group(f"width_{width}", task.at_width(width), variation=variation)  # pyright: ignore
        for width in widths
    )
