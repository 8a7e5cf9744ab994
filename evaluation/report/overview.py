"""Table of all cells, with losses in a unit that they share.

Where a suite has many cells, or losses in different units, it stands before the table
of losses and shows mean losses over those at chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.report.aggregate import speed_ups
from evaluation.report.speed_up import format_speed_up
from evaluation.report.summary import (
    MANY_CELLS,
    MARKS,
    Summary,
    names_of,
    summarize,
)
from evaluation.results import EvalRow, by_cell

NOTE = (
    "Mean loss over the loss at chance: 1 is no better than a guess that knows "
    "nothing, and what diverges is capped at 1.5. ▼ the learned optimizer's is lower "
    "than tuned Adam's, ▲ higher, ≈ the 95 % interval of the paired difference holds 0."
)
SPEED_UP_NOTE = (
    "Speed-up: steps until the smoothed training loss of tuned Adam reaches that of "
    "the learned optimizer at the horizon, over the horizon; Adam is run to four times "
    "the horizon; median over seeds; 0 for a run that diverged."
)


def wants_overview(rows: Sequence[EvalRow]) -> bool:
    """Returns whether there are many cells, or losses in more than one unit."""
    many = len({row.cell for row in rows}) > MANY_CELLS
    return many or len({row.unit for row in rows}) > 1


def overview(
    rows: Sequence[EvalRow],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns header and lines of the table."""
    summaries = {(s.cell, s.optimizer): s for s in summarize(rows)}
    names = names_of(rows)
    speeds = speed_ups(rows)
    header = ("cell", "varies", "family", "data", "input", "unit", *names, "")
    lines = []
    for row, *_ in by_cell(rows).values():
        about = (row.cell, row.axis, row.family, row.dataset, row.resolution, row.unit)
        here = [summaries.get((row.cell, name)) for name in names]
        figures = (f"{s.normalized_loss:.3g}" if s else "–" for s in here)
        line = (*about, *figures, _mark(here))
        if speeds:
            line += (_speed(speeds.get(row.cell)),)
        lines.append(line)
    return (*header, "speed-up") if speeds else header, lines


def _mark(summaries: Sequence[Summary | None]) -> str:
    """Mark of the learned optimizer, the first, against tuned Adam."""
    first = summaries[0] if summaries else None
    if first is None or first.versus_adam is None:
        return ""
    return MARKS[first.versus_adam.verdict]


def _speed(values: Mapping[int, float] | None) -> str:
    return format_speed_up(float(np.median([*values.values()]))) if values else "–"
