"""Tables of rows and tunings, as plain text and as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from evaluation.plan import LEARNED, OPTIMIZERS, CellTuning, Skipped
from evaluation.report.aggregate import aggregate_lines, wants_aggregates
from evaluation.report.overview import NOTE, SPEED_UP_NOTE, overview, wants_overview
from evaluation.report.summary import (
    Summary,
    format_error,
    format_paired,
    headline,
    scaling_lines,
    summarize,
)
from evaluation.report.text_table import text_table
from evaluation.results import EvalRow

COLUMNS = (
    "cell",
    "optimizer",
    "mean loss",
    "minus tuned Adam [95 %]",
    "wins",
    "final loss",
    "valid loss",
    "test loss",
    "test acc.",
    "diverged",
    "s/run",
    "learning rate",
)


def summary_cells(summary: Summary) -> tuple[str, ...]:
    """The texts of one line of the summary, in the order of `COLUMNS`."""
    difference = summary.versus_adam
    mark = {"lower": " ▼", "higher": " ▲", "tie": " ≈"}
    versus = wins = "–"
    if difference is not None:
        versus = format_paired(difference) + mark[difference.verdict]
        wins = f"{difference.wins}/{difference.num}"
    diverged = f"{summary.diverged}/{summary.num}"
    if summary.capped_steps:
        diverged += f" ({summary.capped_steps} steps capped)"
    return (
        summary.cell,
        summary.optimizer,
        format_error(summary.mean_loss),
        versus,
        wins,
        f"{summary.final_loss[0]:.2g}",
        f"{summary.valid_loss[0]:.3f}",
        f"{summary.test_loss[0]:.3f}",
        _percent(summary.test_accuracy[0]),
        diverged,
        f"{summary.seconds:.1f}",
        summary.settings,
    )


def _percent(accuracy: float) -> str:
    return "–" if math.isnan(accuracy) else f"{100 * accuracy:.1f} %"


def legend(rows: Sequence[EvalRow]) -> str:
    """What the figures of the summary are; cells of the commonest unit go unnamed."""
    units: dict[str, list[str]] = {}
    for row in {row.cell: row for row in rows}.values():
        units.setdefault(row.unit, []).append(row.cell)
    first, *others = sorted(units, key=lambda unit: -len(units[unit])) or ["nats"]
    named = (f", in {other} ({', '.join(units[other])})" for other in others)
    unit = first + "".join(named)
    return (
        f"Losses in {unit}; mean loss: mean over all steps of the training batch's "
        "loss before the update, ± standard error over seeds; ▼ lower than tuned Adam, "
        "▲ higher, ≈ the 95 % interval of the paired difference holds 0."
    )


def text_summary(
    rows: Sequence[EvalRow],
    missing: Sequence[tuple[str, str, int]] = (),
    skipped: Sequence[Skipped] = (),
) -> str:
    """The summary for a terminal, in aligned columns."""
    text = text_table([COLUMNS, *map(summary_cells, summarize(rows))])
    if wants_overview(rows):
        header, lines = overview(rows)
        table = text_table([header, *lines], grouped=False)
        text += ["", *table, "", *overview_notes(rows)]
    text += ["", legend(rows), "", headline(rows), *scaling_lines(rows)]
    text += aggregate_lines(rows, skipped)
    text += [f"SKIPPED: {cell}: {reason}" for cell, reason in skipped]
    if missing:
        text.append(f"MISSING: {describe_missing(missing)}")
    return "\n".join(text)


def overview_notes(rows: Sequence[EvalRow]) -> list[str]:
    """What the figures of the overview are."""
    return [NOTE, SPEED_UP_NOTE] if wants_aggregates(rows) else [NOTE]


def html_overview(rows: Sequence[EvalRow]) -> str:
    """The overview as an HTML table."""
    return html_table(*overview(rows))


def describe_missing(missing: Sequence[tuple[str, str, int]]) -> str:
    """Runs that are not there, by cell and optimizer."""
    groups: dict[tuple[str, str], list[int]] = {}
    for cell, optimizer, seed in missing:
        groups.setdefault((cell, optimizer), []).append(seed)
    return "; ".join(
        f"{cell}, {optimizer}: seeds {', '.join(map(str, seeds))}"
        for (cell, optimizer), seeds in groups.items()
    )


def html_table(
    header: Sequence[str],
    lines: Iterable[Sequence[Any]],
    marks: Iterable[str] | None = None,
) -> str:
    """A table; every text is escaped, the first column repeats only where it changes.

    Args:
        header: names of the columns.
        lines: texts, as many as the header in each line.
        marks: a CSS class of each line.
    """
    lines = list(lines)
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
    """The summary as an HTML table; the learned optimizer's lines are set off."""
    summaries = summarize(rows)
    return html_table(
        COLUMNS,
        [summary_cells(summary) for summary in summaries],
        ["learned" if s.optimizer == LEARNED else "" for s in summaries],
    )


def html_seeds(rows: Sequence[EvalRow]) -> str:
    """Every run, seed by seed."""
    header = ("cell", "optimizer", "seed", "mean loss", "final loss", "valid loss")
    header += ("valid acc.", "test loss", "test acc.", "diverged", "s/run")
    names = list(dict.fromkeys([*OPTIMIZERS, *(row.optimizer for row in rows)]))
    cells = list(dict.fromkeys(row.cell for row in rows))

    def place(row: EvalRow) -> tuple[int, int, int]:
        return cells.index(row.cell), names.index(row.optimizer), row.seed

    lines = [
        (
            row.cell,
            row.optimizer,
            row.seed,
            f"{row.mean_loss:.4f}",
            f"{row.final_loss:.2g}",
            f"{row.valid_loss:.4f}",
            _percent(row.valid_accuracy),
            f"{row.test_loss:.4f}",
            _percent(row.test_accuracy),
            "yes" if row.diverged else "no",
            f"{row.seconds:.2f}",
        )
        for row in sorted(rows, key=place)
    ]
    return html_table(header, lines)


def html_tunings(tunings: Sequence[CellTuning]) -> str:
    """What the tuning of each baseline cost, and what it chose."""
    header = ("cell", "optimizer", "chosen", "criterion", "learning rates tried")
    header += ("runs", "inner steps", "widened", "at the edge", "diverged runs")
    lines = []
    for cell, name, tuning in tunings:
        rates = [point.learning_rate for point in tuning.points]
        span = f"{min(rates):.3g} … {max(rates):.3g}"
        lines.append(
            (
                cell,
                name,
                f"{tuning.learning_rate:.3g} {tuning.schedule}",
                f"{tuning.mean_loss:.4f}",
                f"{span}, {len(rates)} points",
                tuning.num_runs,
                f"{tuning.inner_steps:,}",
                f"{tuning.widenings}×",
                "YES" if tuning.at_edge else "no",
                sum(point.diverged for point in tuning.points),
            )
        )
    return html_table(header, lines)
