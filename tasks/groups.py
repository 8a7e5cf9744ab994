"""What a meta-training run samples: groups of tasks, and what varies inside a group.

Tasks of different shapes cannot share a program, so they are *groups*: each is one task
of static shape with a weight. What can be traced varies inside a group, anew for each
episode, at no further compilation (`tasks.variation`). A random width is therefore a
group for each width.

With `each_step="all"` every outer step runs all groups and averages their
meta-gradients by weight. With "one" it runs one group, drawn with probability in
proportion to its weight: the same mean, a fraction of the time per step, more noise.
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
    """Names its metrics."""
    task: Annotated[BaseTask, OPEN]
    """The task, before anything varies."""
    weight: float = 1.0
    """Of its meta-gradient in the mean, or of the group when one is drawn."""
    variation: Variation = Variation()
    """What differs between two of its episodes."""

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
    """Groups of an outer step: all, or one drawn by weight."""

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if not names:
            raise ValueError("groups = (): a distribution has at least one")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"groups: the name {name!r} stands more than once")

    @classmethod
    def single(cls, task: Task, variation: Variation = UNVARYING) -> Self:
        """One group, of a task of any kind."""
        return cls((Group("task", task, variation=variation),))  # pyright: ignore


def over_widths(
    task: ModelTask, widths: Sequence[int], variation: Variation = UNVARYING
) -> tuple[Group, ...]:
    """A group for each width of a task, all with the same weight."""
    return tuple(
        Group(f"width_{width}", task.at_width(width), variation=variation)  # pyright: ignore
        for width in widths
    )
