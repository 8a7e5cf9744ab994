"""One line a cell, in a unit that all cells share.

A table of losses is read within a cell. Where a suite has many cells, or cells with
losses in different units, this stands before it: mean losses over those at chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.plan import ADAM_LONG, OPTIMIZERS
from evaluation.report.aggregate import speed_ups
from evaluation.report.speed_up import format_speed_up
from evaluation.report.summary import MANY_CELLS, Summary, summarize
from evaluation.results import EvalRow

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
    """Whether there are many cells, or losses in more than one unit."""
    return (
        len({row.cell for row in rows}) > MANY_CELLS or len({r.unit for r in rows}) > 1
    )


def overview(
    rows: Sequence[EvalRow],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and lines of the table."""
    summaries = {(s.cell, s.optimizer): s for s in summarize(rows)}
    present = {row.optimizer for row in rows} - {ADAM_LONG}
    names = [name for name in OPTIMIZERS if name in present]
    speeds = speed_ups(rows)
    header = ("cell", "varies", "family", "data", "input", "unit", *names, "")
    lines = []
    for row in {row.cell: row for row in rows}.values():
        about = (row.cell, row.axis, row.family, row.dataset, row.resolution, row.unit)
        here = [summaries.get((row.cell, name)) for name in names]
        figures = (f"{s.normalized_loss:.3g}" if s else "–" for s in here)
        line = (*about, *figures, _mark(here))
        if speeds:
            line += (_speed(speeds.get(row.cell)),)
        lines.append(line)
    return (*header, "speed-up") if speeds else header, lines


def _mark(summaries: Sequence[Summary | None]) -> str:
    """How the learned optimizer, the first, compares with tuned Adam."""
    first = summaries[0] if summaries else None
    if first is None or first.versus_adam is None:
        return ""
    return {"lower": "▼", "higher": "▲", "tie": "≈"}[first.versus_adam.verdict]


def _speed(values: Mapping[int, float] | None) -> str:
    return format_speed_up(float(np.median([*values.values()]))) if values else "–"
