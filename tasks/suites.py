"""Named evaluation suites, as plain values.

A suite is a tuple of cells. One cell is the setting of meta-training; each of the
others varies one thing alone (width, depth or horizon), so that what a figure says
about generalization can be attributed to it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from tasks.classification import ImageClassification
from tasks.models.mlp import MLP

Axis = Literal["trained", "width", "depth", "horizon"]
AXES: tuple[Axis, ...] = ("trained", "width", "depth", "horizon")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting in which optimizers are compared."""

    name: str
    """Unique in its suite; a heading of the report."""
    axis: Axis
    """What alone differs from the trained cell; "trained" is that cell itself."""
    task: ImageClassification
    """The task, in μP; baselines may run it in the standard parametrization."""
    num_steps: int
    """Inner steps (`H`)."""

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(f"axis = {self.axis!r} is not one of {', '.join(AXES)}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps = {self.num_steps} must be positive")


Suite = tuple[Cell, ...]


def _mlp(*widths: int) -> ImageClassification:
    return ImageClassification(MLP(widths, base_width=32), batch_size=128)


QUICKSTART: Suite = (
    Cell("trained", "trained", _mlp(32, 32), 400),
    Cell("width 128", "width", _mlp(128, 128), 400),
    Cell("width 512", "width", _mlp(512, 512), 400),
    Cell("depth 4", "depth", _mlp(32, 32, 32, 32), 400),
    Cell("horizon 2000", "horizon", _mlp(32, 32), 2000),
)
"""Digits, MLPs of base width 32: wider, deeper and longer than meta-training."""

SUITES: dict[str, Suite] = {"quickstart": QUICKSTART}
