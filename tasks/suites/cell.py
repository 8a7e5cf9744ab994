"""Evaluation suites: named sets of cells.

A cell is a task and a horizon. In a ladder one cell is the setting of meta-training and
each of the others varies a single thing, to which a difference can be attributed.
Published suites vary several things at once; most have no trained cell.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Literal, get_args

from configuration.fields import OPEN, configuration
from tasks.base import BaseTask, check_task

Axis = Literal[
    "trained",
    "width",
    "depth",
    "horizon",
    "resolution",
    "dataset",
    "family",
    "held_out",
]
AXES: tuple[Axis, ...] = get_args(Axis)


@configuration
class Cell:
    """One setting in which optimizers are compared."""

    name: str
    """Unique in its suite, printable; a heading of the report."""
    axis: Axis
    """The only difference from the trained cell: width, depth, horizon, resolution of
    the data, data, or family (the model and its loss; data, batch and horizon stay).
    "trained" is that cell itself, "held_out" one that differs in several things, or
    whose suite has no trained cell."""
    task: Annotated[BaseTask, OPEN]
    """The task, in μP; baselines may run it in the standard parametrization."""
    num_steps: int
    """Inner steps (`H`)."""
    note: str = ""
    """Remarks, such as differences from the published task."""

    def __post_init__(self) -> None:
        _check_printable(self.name)
        check_task(self.task)
        if self.num_steps < 1:
            raise ValueError(f"num_steps = {self.num_steps} must be positive")


@configuration
class Suite:
    """Named cells, made when they are asked for."""

    name: str
    """Name on command lines."""
    description: str
    """One line for a list."""
    make: Callable[[], tuple[Cell, ...]]
    """Makes the cells."""
    aggregate: bool = False
    """Whether the report has figures over all cells: interquartile means of the final
    loss against tuned Adam's, and of the speed-up over it, for which Adam is also run
    to four times the horizon."""

    def __post_init__(self) -> None:
        _check_printable(self.name)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells (made once per process).

        Raises:
            ValueError: if two have one name, or two are the trained cell.
        """
        return _cells(self.make)

    @property
    def trained(self) -> Cell | None:
        """Cell with the setting of meta-training, if there is one."""
        return next((cell for cell in self.cells if cell.axis == "trained"), None)


def _check_printable(name: str) -> None:
    if not name.strip() or not name.isprintable():
        raise ValueError(
            f"name = {name!a} must be a printable text of one line, without control "
            "characters"
        )


@functools.cache
def _cells(make: Callable[[], tuple[Cell, ...]]) -> tuple[Cell, ...]:
    cells = make()
    names = [cell.name for cell in cells]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the suite has two cells of the name {twice[0]!r}")
    num = sum(cell.axis == "trained" for cell in cells)
    if num > 1:
        raise ValueError(f"the suite has {num} trained cells, must have at most one")
    return cells
