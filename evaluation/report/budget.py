"""What each optimizer of a table was given before its reported runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.plan import LEARNED
from evaluation.report.summary import names_of
from evaluation.results import EvalRow


def budget_lines(rows: Sequence[EvalRow]) -> list[str]:
    """Returns a line for each optimizer: its tuning over all cells, or meta-training.

    The reported runs themselves, which all optimizers have alike, do not count.
    """
    return [
        line
        for name in names_of(rows)
        if (line := _line(name, [row for row in rows if row.optimizer == name]))
    ]


def meta_training_steps(provenance: Mapping[str, Any]) -> int | None:
    """Returns the inner steps of a meta-training and of those that it began with.

    None if one of them does not say how many.
    """
    total, about = 0, provenance
    while True:
        steps = about.get("inner_steps")
        if type(steps) is not int or steps < 0:
            return None
        total += steps
        if "parent" not in about:
            return total
        parent = about["parent"]
        about = parent.get("provenance") if isinstance(parent, dict) else None
        if not isinstance(about, dict):
            return None


def _line(name: str, rows: Sequence[EvalRow]) -> str:
    # The seeds of a cell share one tuning.
    about = list({row.cell: row.provenance for row in rows}.values())
    if name == LEARNED:
        steps = about[0].get("meta_training_inner_steps")
        told = "its artifact does not say how long" if steps is None else _count(steps)
        return f"budget of {name}: meta-trained once ({told}), tuned in no cell"
    if not any("tuning_runs" in cell for cell in about):
        return ""
    runs = sum(cell["tuning_runs"] for cell in about)
    if not runs:
        places = dict.fromkeys(cell["tuned_at"] for cell in about)
        return f"budget of {name}: the learning rate tuned in {', '.join(places)}"
    steps = sum(cell["tuning_inner_steps"] for cell in about)
    return f"budget of {name}: {runs:,} tuning runs over all cells ({_count(steps)})"


def _count(steps: int) -> str:
    return f"{steps:,} inner steps"
