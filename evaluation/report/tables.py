"""Tables of rows and tunings, as text and as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.plan import LEARNED, OPTIMIZERS, CellTuning, Skipped
from evaluation.report.aggregate import aggregate_lines, speed_ups, wants_aggregates
from evaluation.report.budget import budget_lines
from evaluation.report.speed_up import format_speed_up
from evaluation.report.summary import (
    FLAG,
    MANY_CELLS,
    MARKS,
    Summary,
    flag,
    format_error,
    format_held_out,
    format_paired,
    headline,
    is_flagged,
    names_of,
    scaling_lines,
    summarize,
)
from evaluation.report.text_table import text_table
from evaluation.results import EvalRow, by_cell
from evaluation.tune import Tuning
from tasks.base import UNIT

_OVERVIEW_NOTE = (
    "Mean loss over the loss at chance: 1 is no better than a guess that knows "
    "nothing, and what diverges is capped at 1.5. ▼ the learned optimizer's is lower "
    "than tuned Adam's, ▲ higher, ≈ the 95 % interval of the paired difference holds 0."
)
_OVERVIEW_FLAG_NOTE = (
    f"A hollow mark in the figure or{FLAG} in the table: a run diverged, or one of its "
    "held-out losses is above 1.5 × the loss at chance or not finite."
)
_SPEED_UP_NOTE = (
    "Speed-up: steps until the smoothed training loss of tuned Adam reaches that of "
    "the learned optimizer at the horizon, over the horizon; Adam is run to four times "
    "the horizon; median over seeds; 0 for a run that diverged."
)

Line = dict[str, Any]
"""Texts of a line by column."""


def _columns(lines: Sequence[Line]) -> tuple[list[str], list[list[Any]]]:
    """Header and texts of lines with the same columns."""
    return list(lines[0]) if lines else [], [list(line.values()) for line in lines]


def summary_line(summary: Summary, *, with_unit: bool = False) -> Line:
    """Returns the line of one optimizer in one cell, `with_unit` of its losses."""
    difference = summary.versus_adam
    versus = wins = "–"
    if difference is not None:
        versus = f"{format_paired(difference)} {MARKS[difference.verdict]}"
        wins = f"{difference.wins}/{difference.num}"
    diverged = f"{summary.diverged}/{summary.num}"
    if summary.capped_steps:
        diverged += f" ({summary.capped_steps} steps capped)"
    return {
        "cell": summary.cell,
        "optimizer": summary.optimizer,
        **({"unit": summary.unit} if with_unit else {}),
        "mean loss": format_error(summary.mean_loss),
        "minus tuned Adam [95 %]": versus,
        "wins": wins,
        "final loss": f"{summary.final_loss[0]:.2g}",
        "valid loss": format_held_out(summary.valid_loss[0]) + flag(summary),
        "test loss": format_held_out(summary.test_loss[0]) + flag(summary),
        "test acc.": _percent(summary.test_accuracy[0]),
        "diverged": diverged,
        "s/run": f"{summary.seconds:.1f}",
        "learning rate": summary.settings,
    }


def _percent(accuracy: float) -> str:
    return "–" if math.isnan(accuracy) else f"{100 * accuracy:.1f} %"


def legend(rows: Sequence[EvalRow]) -> str:
    """Explains the summary; cells whose unit is not the commonest are named."""
    units: dict[str, list[str]] = {}
    for cell, (row, *_) in by_cell(rows).items():
        units.setdefault(row.unit, []).append(cell)
    first, *others = sorted(units, key=lambda unit: -len(units[unit])) or [UNIT]
    named = (f", in {other} ({', '.join(units[other])})" for other in others)
    unit = first + "".join(named)
    text = (
        f"Losses in {unit}; mean loss: mean over all steps of the training batch's "
        "loss before the update, ± standard error over seeds; ▼ lower than tuned Adam, "
        "▲ higher, ≈ the 95 % interval of the paired difference holds 0."
    )
    cells = by_cell(rows)
    drawn = {cell: row.readout_init for cell, (row, *_) in cells.items()}
    drawn = {cell: start for cell, start in drawn.items() if start != "zero"}
    if drawn:
        where = "all cells" if len(drawn) == len(cells) else ", ".join(drawn)
        starts = ", ".join(sorted({*drawn.values()}))
        text += f" Readouts do not start at zero (readout_init: {starts}) in {where}."
    if any(row.capped_steps for row in rows):
        text += (
            " Capped steps count in mean and final losses as 1.5 × the loss at chance."
        )
    if any(map(is_flagged, rows)):
        text += (
            f"{FLAG} a run diverged, or its validation or test loss, which are not "
            "capped, is above 1.5 × the loss at chance or not finite."
        )
    return text


def text_summary(
    rows: Sequence[EvalRow],
    missing: Sequence[tuple[str, str, int]] = (),
    skipped: Sequence[Skipped] = (),
) -> str:
    """Formats the summary for a terminal, in aligned columns."""
    header, lines = _columns(_summary_lines(rows))
    text = text_table([header, *lines])
    if wants_overview(rows):
        names, cells = overview(rows)
        table = text_table([names, *cells], grouped=False)
        text += ["", *table, "", *overview_notes(rows)]
    text += ["", legend(rows), "", headline(rows), *budget_lines(rows)]
    text += scaling_lines(rows)
    text += aggregate_lines(rows, skipped)
    text += [f"SKIPPED: {cell}: {reason}" for cell, reason in skipped]
    if missing:
        text.append(f"MISSING: {describe_missing(missing)}")
    return "\n".join(text)


def wants_overview(rows: Sequence[EvalRow]) -> bool:
    """Returns whether there are many cells, or losses in more than one unit.

    A table of losses is then hard to read, and one of normalized losses precedes it.
    """
    many = len({row.cell for row in rows}) > MANY_CELLS
    return many or _mixes(row.unit for row in rows)


def _mixes(units: Iterable[str]) -> bool:
    """Whether losses have more than one unit, so that each line must name its own."""
    return len(set(units)) > 1


def _summary_lines(rows: Sequence[EvalRow]) -> list[Line]:
    mixed = _mixes(row.unit for row in rows)
    return [summary_line(summary, with_unit=mixed) for summary in summarize(rows)]


def overview(
    rows: Sequence[EvalRow],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns header and lines of the table of normalized losses, a line per cell."""
    summaries = {(s.cell, s.optimizer): s for s in summarize(rows)}
    names = names_of(rows)
    speeds = speed_ups(rows)
    header = ("cell", "varies", "family", "data", "input", "unit", *names, "")
    lines = []
    for row, *_ in by_cell(rows).values():
        about = (row.cell, row.axis, row.family, row.dataset, row.resolution, row.unit)
        here = [summaries.get((row.cell, name)) for name in names]
        figures = (f"{s.normalized_loss:.3g}{flag(s)}" if s else "–" for s in here)
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


def overview_notes(rows: Sequence[EvalRow]) -> list[str]:
    """Explains the overview."""
    flagged = [_OVERVIEW_FLAG_NOTE] if any(map(is_flagged, rows)) else []
    speed = [_SPEED_UP_NOTE] if wants_aggregates(rows) else []
    return [_OVERVIEW_NOTE, *flagged, *speed]


def describe_missing(missing: Sequence[tuple[str, str, int]]) -> str:
    """Lists missing runs by cell and optimizer."""
    groups: dict[tuple[str, str], list[int]] = {}
    for cell, optimizer, seed in missing:
        groups.setdefault((cell, optimizer), []).append(seed)
    return "; ".join(
        f"{cell}, {optimizer}: seeds {', '.join(map(str, seeds))}"
        for (cell, optimizer), seeds in groups.items()
    )


def html_table(
    header: Sequence[str],
    lines: Sequence[Sequence[Any]],
    marks: Iterable[str] | None = None,
) -> str:
    """Formats a table; texts are escaped, the first column shown where it changes.

    Args:
        header: names of the columns.
        lines: the texts of each line, as many as the header.
        marks: CSS class of each line.
    """
    classes = list(marks) if marks is not None else [""] * len(lines)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body, previous = [], None
    for line, mark in zip(lines, classes, strict=True):
        new = line[0] != previous
        shown = [line[0] if new else "", *line[1:]]
        previous = line[0]
        cells = "".join(f"<td>{html.escape(str(text))}</td>" for text in shown)
        names = " ".join(filter(None, (mark, "first" if new else "")))
        body.append(f'<tr class="{names}">{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def html_summary(rows: Sequence[EvalRow]) -> str:
    """Formats the summary, the learned optimizer's lines set off."""
    lines = _summary_lines(rows)
    marks = ["learned" if x["optimizer"] == LEARNED else "" for x in lines]
    return html_table(*_columns(lines), marks)


def html_seeds(rows: Sequence[EvalRow]) -> str:
    """Formats every run, seed by seed."""
    names = list(dict.fromkeys([*OPTIMIZERS, *(row.optimizer for row in rows)]))

    def place(row: EvalRow) -> tuple[int, int]:
        return names.index(row.optimizer), row.seed

    mixed = _mixes(row.unit for row in rows)
    lines = [
        {
            "cell": row.cell,
            "optimizer": row.optimizer,
            "seed": row.seed,
            **({"unit": row.unit} if mixed else {}),
            "mean loss": f"{row.mean_loss:.4f}",
            "final loss": f"{row.final_loss:.2g}",
            "valid loss": format_held_out(row.valid_loss, 4) + FLAG * is_flagged(row),
            "valid acc.": _percent(row.valid_accuracy),
            "test loss": format_held_out(row.test_loss, 4) + FLAG * is_flagged(row),
            "test acc.": _percent(row.test_accuracy),
            "diverged": "yes" if row.diverged else "no",
            "steps capped": row.capped_steps,
            "s/run": f"{row.seconds:.2f}",
        }
        for here in by_cell(rows).values()
        for row in sorted(here, key=place)
    ]
    return html_table(*_columns(lines))


def units_of(rows: Sequence[EvalRow]) -> dict[str, str]:
    """Returns the unit of the losses in each cell."""
    return {row.cell: row.unit for row in rows}


def html_tunings(tunings: Sequence[CellTuning], units: Mapping[str, str]) -> str:
    """Formats what each tuning chose and cost; `units` are of losses, by cell."""
    lines = [_tuning_line(*entry, units.get(entry.cell, UNIT)) for entry in tunings]
    return html_table(*_columns(lines))


def _tuning_line(cell: str, name: str, tuning: Tuning, unit: str) -> Line:
    rates = [point.learning_rate for point in tuning.points]
    span = f"{min(rates):.3g} … {max(rates):.3g}"
    return {
        "cell": cell,
        "optimizer": name,
        "chosen": f"{tuning.learning_rate:.3g} {tuning.schedule}",
        "criterion": f"{tuning.mean_loss:.4f} {unit}",
        "learning rates tried": f"{span}, {len(rates)} points",
        "runs": tuning.num_runs,
        "inner steps": f"{tuning.inner_steps:,}",
        "widened": f"{tuning.widenings}×",
        "at the edge": "YES" if tuning.at_edge else "no",
        "diverged runs": sum(point.diverged for point in tuning.points),
    }
