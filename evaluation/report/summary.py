"""Rows to statements: one optimizer in one cell, and who is better where.

Every summary says of how many seeds it is made, how many of them diverged, and how it
compares with tuned Adam seed by seed. Whose mean loss is lower is stated only where the
paired interval says so; everything else is a tie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from evaluation.plan import ADAM, ADAM_LONG, LEARNED, OPTIMIZERS
from evaluation.report.statistics import Paired, mean_and_error, paired
from evaluation.results import EvalRow

MANY_CELLS = 5
"""With more cells than this they are counted rather than named, and a suite has an
overview."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """One optimizer in one cell, over its seeds; losses in the cell's unit."""

    cell: str
    optimizer: str
    num: int
    """Seeds that were run."""
    mean_loss: tuple[float, float]
    """Mean and standard error over seeds, as all pairs here."""
    final_loss: tuple[float, float]
    valid_loss: tuple[float, float]
    test_loss: tuple[float, float]
    test_accuracy: tuple[float, float]
    """NaN where the task has none."""
    normalized_loss: float
    """Mean loss over the loss at chance, to be compared between cells."""
    diverged: int
    capped_steps: int
    """Steps of all seeds together whose loss counted as the cap."""
    seconds: float
    """Mean wall time of a run."""
    settings: str
    """Learning rate and schedule, or that nothing was tuned."""
    versus_adam: Paired | None
    """Mean loss minus that of tuned Adam, on the seeds that both have."""


def summarize(rows: Sequence[EvalRow]) -> list[Summary]:
    """Summaries in the order of cells and of `OPTIMIZERS`.

    Runs that only serve to measure speed-ups are not among them.
    """
    rows = [row for row in rows if row.optimizer != ADAM_LONG]
    cells = list(dict.fromkeys(row.cell for row in rows))
    names = dict.fromkeys(row.optimizer for row in rows)
    order = [name for name in OPTIMIZERS if name in names]
    order += [name for name in names if name not in OPTIMIZERS]
    summaries = []
    for cell in cells:
        here = [row for row in rows if row.cell == cell]
        for name in order:
            if group := [row for row in here if row.optimizer == name]:
                summaries.append(_summary(group, here))
    return summaries


def compare(
    rows: Iterable[EvalRow], a: str, b: str, figure: str = "mean_loss"
) -> Paired | None:
    """Pairs two optimizers of one cell by seed; None if they share no seed."""
    figures: dict[str, dict[int, float]] = {a: {}, b: {}}
    for row in rows:
        if row.optimizer in figures:
            figures[row.optimizer][row.seed] = getattr(row, figure)
    seeds = sorted(figures[a].keys() & figures[b].keys())
    if not seeds:
        return None
    return paired([figures[a][s] for s in seeds], [figures[b][s] for s in seeds])


def _summary(group: Sequence[EvalRow], here: Sequence[EvalRow]) -> Summary:
    def over_seeds(figure: str) -> tuple[float, float]:
        return mean_and_error([getattr(row, figure) for row in group])

    first = group[0]
    return Summary(
        cell=first.cell,
        optimizer=first.optimizer,
        num=len(group),
        mean_loss=over_seeds("mean_loss"),
        final_loss=over_seeds("final_loss"),
        valid_loss=over_seeds("valid_loss"),
        test_loss=over_seeds("test_loss"),
        test_accuracy=over_seeds("test_accuracy"),
        normalized_loss=over_seeds("mean_loss")[0] / first.loss_at_chance,
        diverged=sum(row.diverged for row in group),
        capped_steps=sum(row.capped_steps for row in group),
        seconds=mean_and_error([row.seconds for row in group])[0],
        settings=_settings(first),
        versus_adam=None
        if first.optimizer == ADAM
        else compare(here, first.optimizer, ADAM),
    )


def _settings(row: EvalRow) -> str:
    about = row.provenance
    if "learning_rate" not in about:
        return "no tuning"
    text = f"{about['learning_rate']:.3g} {about['schedule']}"
    if about["tuned_at"] != row.cell:
        return f"{text} (from {about['tuned_at']})"
    return f"{text} ({about['tuning_runs']} runs)"


def headline(rows: Sequence[EvalRow]) -> str:
    """One or two sentences: the paired figure in the trained cell, and who wins where.

    A baseline that is lower than the learned optimizer is always named.
    """
    trained = next((row.cell for row in rows if row.axis == "trained"), None)
    if trained is None:
        return f"No cell is the setting of meta-training. {_elsewhere(rows)}"
    here = [row for row in rows if row.cell == trained]
    difference = compare(here, LEARNED, ADAM)
    if difference is None:
        return "The learned optimizer and tuned Adam share no run in the trained cell."
    percent = 100.0 * (difference.ratio - 1.0)
    relation = "below" if percent < 0 else "above"
    verdict = {
        "lower": "the learned optimizer wins",
        "higher": "tuned Adam wins",
        "tie": "a tie: the interval holds 0",
    }[difference.verdict]
    first = (
        f"In the trained cell the learned optimizer's mean training loss is "
        f"{abs(percent):.1f} % {relation} tuned Adam's: paired difference "
        f"{format_paired(difference)}, lower on {difference.wins} of "
        f"{difference.num} seeds ({verdict})."
    )
    return f"{first} {_held_out(here)} {_elsewhere(rows)}"


def _held_out(rows: Sequence[EvalRow]) -> str:
    """Training loss is what both were chosen by; this is what a user is left with."""
    difference = compare(rows, LEARNED, ADAM, "test_loss")
    assert difference is not None
    words = {
        "lower": "lower than",
        "higher": "higher than",
        "tie": "not distinguishable from",
    }
    mean, _ = mean_and_error([r.test_loss for r in rows if r.optimizer == LEARNED])
    final = [
        mean_and_error([r.final_loss for r in rows if r.optimizer == name])[0]
        for name in (LEARNED, ADAM)
    ]
    return (
        f"Over the last 20 steps its training loss is {final[0]:.2g}, tuned Adam's "
        f"{final[1]:.2g}. Its test loss after the last step, {mean:.3f}, is "
        f"{words[difference.verdict]} tuned Adam's (paired difference "
        f"{format_paired(difference)})."
    )


def _elsewhere(rows: Sequence[EvalRow]) -> str:
    cells = list(dict.fromkeys(row.cell for row in rows))
    won, tied = [], []
    lost: dict[str, list[str]] = {}
    for cell in cells:
        here = [row for row in rows if row.cell == cell]
        for name in OPTIMIZERS[1:]:
            difference = compare(here, LEARNED, name)
            if difference and difference.verdict == "higher":
                lost.setdefault(name, []).append(cell)
            if difference and difference.verdict == "lower" and name == ADAM:
                won.append(cell)
            if difference and difference.verdict == "tie" and name == ADAM:
                tied.append(cell)
    parts = []
    many = len(cells) > MANY_CELLS
    if won:
        shown = f"{len(won)} of {len(cells)} cells" if many else ", ".join(won)
        parts.append(f"Its mean loss is lower than tuned Adam's in: {shown}.")
    if tied:
        shown = f"{len(tied)} of {len(cells)} cells" if many else ", ".join(tied)
        parts.append(f"Not distinguishable from tuned Adam: {shown}.")
    if many:
        shown = ", ".join(
            f"{name} (in {len(there)} of {len(cells)} cells)"
            for name, there in lost.items()
        )
    else:
        pairs = ((cell, name) for cell in cells for name in lost if cell in lost[name])
        shown = ", ".join(f"{name} ({cell})" for cell, name in pairs)
    if lost:
        parts.append(f"Baselines with a lower mean loss: {shown}.")
    else:
        parts.append("No baseline has a lower mean loss in any cell.")
    return " ".join(parts)


def scaling_lines(rows: Sequence[EvalRow]) -> list[str]:
    """The learned optimizer's mean loss in each cell relative to its trained cell.

    Adam's ratio stands beside: a longer or a wider run has a lower mean by itself.
    Losses are first divided by those at chance, for cells may differ in their unit.
    """
    trained = next((row.cell for row in rows if row.axis == "trained"), "")
    means = {(s.cell, s.optimizer): s for s in summarize(rows)}
    own, adam = means.get((trained, LEARNED)), means.get((trained, ADAM))
    if own is None:
        return []
    lines = []
    for (cell, optimizer), summary in means.items():
        if optimizer != LEARNED or cell == trained:
            continue
        there = means.get((cell, ADAM))
        beside = (
            f" (tuned Adam: {there.normalized_loss / adam.normalized_loss:.2f} ×)"
            if there and adam
            else ""
        )
        ratio = summary.normalized_loss / own.normalized_loss
        lines.append(
            f"{cell}: {ratio:.2f} × its own mean loss in “{trained}”{beside}, "
            f"final loss {summary.final_loss[0]:.2g}"
        )
    return lines


def format_error(value: tuple[float, float]) -> str:
    """A mean and its standard error."""
    return f"{value[0]:.4f} ± {value[1]:.4f}"


def format_paired(difference: Paired) -> str:
    """A mean difference and its interval."""
    text = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    return text.replace("-", "−")
