"""Figures over all cells of a suite: final losses and speed-ups over tuned Adam.

Losses of different tasks have no common unit; ratios to tuned Adam's have. Both figures
are above 1 where the optimizer is better, and both are averaged over cells and seeds by
the interquartile mean, which a few failures or triumphs do not move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from evaluation.plan import ADAM, ADAM_LONG, LEARNED, Skipped
from evaluation.report.speed_up import REFERENCE_HORIZONS, speed_up
from evaluation.report.statistics import InterquartileMean, interquartile_mean
from evaluation.results import EvalRow

Figures: TypeAlias = dict[str, dict[int, float]]
"""Figures by cell and seed."""


def wants_aggregates(rows: Sequence[EvalRow]) -> bool:
    """Returns whether Adam's longer runs are there, as a suite asks for them."""
    return any(row.optimizer == ADAM_LONG for row in rows)


def speed_ups(rows: Sequence[EvalRow], optimizer: str = LEARNED) -> Figures:
    """Returns speed-ups over tuned Adam, infinite where they exceed 4."""
    by_run = {(row.cell, row.optimizer, row.seed): row for row in rows}
    found: Figures = {}
    for (cell, name, seed), row in by_run.items():
        long = by_run.get((cell, ADAM_LONG, seed))
        short = by_run.get((cell, ADAM, seed))
        if name != optimizer or long is None or short is None:
            continue
        curves = [short.curve, long.curve]
        value = speed_up(row.curve, curves, diverged=row.diverged)
        found.setdefault(cell, {})[seed] = value
    return found


def final_ratios(rows: Sequence[EvalRow], optimizer: str = LEARNED) -> Figures:
    """Returns tuned Adam's final losses over the optimizer's."""
    adam = {(r.cell, r.seed): r.final_loss for r in rows if r.optimizer == ADAM}
    found: Figures = {}
    for row in rows:
        if row.optimizer == optimizer and (row.cell, row.seed) in adam:
            a, b = adam[row.cell, row.seed], row.final_loss
            ratio = a / b if b else math.inf if a else 1.0
            found.setdefault(row.cell, {})[row.seed] = ratio
    return found


def interquartile_means(rows: Sequence[EvalRow]) -> dict[str, InterquartileMean]:
    """Returns the learned optimizer's two figures by name, over common seeds.

    A speed-up that is only known to exceed 4 counts as 4.
    """
    figures = {
        "final loss (tuned Adam's over its own)": final_ratios(rows),
        "speed-up over tuned Adam": {
            cell: {s: min(x, REFERENCE_HORIZONS) for s, x in values.items()}
            for cell, values in speed_ups(rows).items()
        },
    }
    means = {}
    for name, cells in figures.items():
        shared = set[int].intersection(*map(set, cells.values())) if cells else set()
        if shared:
            chosen = [[cell[s] for s in sorted(shared)] for cell in cells.values()]
            means[name] = interquartile_mean(chosen)
    return means


def aggregate_lines(
    rows: Sequence[EvalRow], skipped: Sequence[Skipped] = ()
) -> list[str]:
    """Says each figure in a sentence, and which cells are not in it."""
    if not wants_aggregates(rows):
        return []
    lines = [
        f"The learned optimizer's {name}, interquartile mean over {found.num_cells} "
        f"cells and {found.num_figures} runs: {found.mean:.2f} "
        f"[{found.low:.2f}, {found.high:.2f}] (95 %, bootstrap over cells)."
        for name, found in interquartile_means(rows).items()
    ]
    if skipped:
        lines.append(
            f"{len(skipped)} of {len({r.cell for r in rows}) + len(skipped)} cells "
            "were skipped and are not in these means: they are not the suite's figures."
        )
    return lines
