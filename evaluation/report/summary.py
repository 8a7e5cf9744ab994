"""Summaries of rows: one optimizer in one cell, and which is better where.

Every summary says how many seeds it is made of, how many diverged, and how it compares
with tuned Adam seed by seed. A lower mean loss is claimed only where the paired
interval excludes 0; everything else is a tie.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from evaluation.plan import ADAM, ADAM_LONG, LEARNED, OPTIMIZERS
from evaluation.report.statistics import Paired, mean_and_error, paired
from evaluation.results import EvalRow, by_cell
from metatrain.objective import Objective

MANY_CELLS = 5
"""With more cells they are counted rather than named, and there is an overview."""
MARKS = {"lower": "▼", "higher": "▲", "tie": "≈"}
"""Signs of verdicts in tables."""
FLAG = " †"
"""Follows figures of runs that did not go well (see `is_flagged`)."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """One optimizer in one cell, over its seeds; losses in the cell's unit."""

    cell: str
    optimizer: str
    unit: str
    """Unit of the losses."""
    num: int
    """Number of seeds."""
    mean_loss: tuple[float, float]
    """Mean and standard error over seeds, as all pairs below."""
    final_loss: tuple[float, float]
    valid_loss: tuple[float, float]
    test_loss: tuple[float, float]
    test_accuracy: tuple[float, float]
    """NaN where the task has none."""
    normalized_loss: float
    """Mean loss over the loss at chance, comparable between cells."""
    diverged: int
    capped_steps: int
    """Number of capped steps of all seeds together."""
    flagged: int
    """Number of flagged seeds (see `is_flagged`)."""
    seconds: float
    """Mean of the seeds' shares of the wall time."""
    settings: str
    """Learning rate and schedule, or "no tuning"."""
    versus_adam: Paired | None
    """Mean loss minus that of tuned Adam, on common seeds."""


def summarize(rows: Sequence[EvalRow]) -> list[Summary]:
    """Summarizes rows, in the order of cells and of `names_of`."""
    names = names_of(rows)
    groups = (
        ([row for row in here if row.optimizer == name], here)
        for here in by_cell(rows).values()
        for name in names
    )
    return [_summary(group, here) for group, here in groups if group]


def is_flagged(row: EvalRow) -> bool:
    """Whether a run diverged, or a held-out loss is above the cap or not finite.

    Held-out losses are reported as measured, unlike training losses, so a single run
    can determine their mean.
    """
    limit = Objective().cap * row.loss_at_chance
    # NaN is not below anything.
    fine = all(loss <= limit for loss in (row.valid_loss, row.test_loss))
    return row.diverged or not fine


def flag(summary: Summary) -> str:
    """Returns the mark of a summary in which a run is flagged, else nothing."""
    return FLAG if summary.flagged else ""


def names_of(rows: Sequence[EvalRow]) -> list[str]:
    """Returns the optimizers in the order of tables, without Adam's longer runs."""
    names = dict.fromkeys(row.optimizer for row in rows if row.optimizer != ADAM_LONG)
    known = [name for name in OPTIMIZERS if name in names]
    return known + [name for name in names if name not in OPTIMIZERS]


def compare(
    rows: Iterable[EvalRow], a: str, b: str, figure: str = "mean_loss"
) -> Paired | None:
    """Compares two optimizers of a cell, paired by seed; None without common seeds."""
    figures = {(row.optimizer, row.seed): getattr(row, figure) for row in rows}
    seeds = sorted(s for name, s in figures if name == a and (b, s) in figures)
    if not seeds:
        return None
    return paired([figures[a, s] for s in seeds], [figures[b, s] for s in seeds])


def _summary(group: Sequence[EvalRow], here: Sequence[EvalRow]) -> Summary:
    first = group[0]
    versus = None if first.optimizer == ADAM else compare(here, first.optimizer, ADAM)
    means = {
        figure: mean_and_error([getattr(row, figure) for row in group])
        for figure in ("mean_loss", "final_loss", "valid_loss", "test_loss")
    }
    return Summary(
        cell=first.cell,
        optimizer=first.optimizer,
        unit=first.unit,
        num=len(group),
        **means,
        test_accuracy=mean_and_error([row.test_accuracy for row in group]),
        normalized_loss=means["mean_loss"][0] / first.loss_at_chance,
        diverged=sum(row.diverged for row in group),
        capped_steps=sum(row.capped_steps for row in group),
        flagged=sum(map(is_flagged, group)),
        seconds=mean_and_error([row.seconds for row in group])[0],
        settings=_settings(first),
        versus_adam=versus,
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
    """Says who wins in the trained cell, by how much, and who wins elsewhere.

    Every baseline that is lower than the learned optimizer is named.
    """
    trained = next((row.cell for row in rows if row.axis == "trained"), None)
    elsewhere = f"{_elsewhere(rows)}{_diverged(rows)}"
    if trained is None:
        return f"No cell is the setting of meta-training. {elsewhere}"
    here = [row for row in rows if row.cell == trained]
    difference = compare(here, LEARNED, ADAM)
    if difference is None:
        return "The learned optimizer and tuned Adam share no run in the trained cell."
    percent = 100.0 * (difference.ratio - 1.0)
    relation = "below" if percent < 0 else "above"
    verdicts = {
        "lower": "the learned optimizer wins",
        "higher": "tuned Adam wins",
        "tie": "a tie: the interval holds 0"
        if difference.num > 1
        else "one seed gives no interval",
    }
    return (
        "In the trained cell the learned optimizer's mean training loss is "
        f"{abs(percent):.1f} % {relation} tuned Adam's: paired difference "
        f"{format_paired(difference)}, lower on {difference.wins} of "
        f"{difference.num} seeds ({verdicts[difference.verdict]}). "
        f"{_held_out(here)} {elsewhere}"
    )


def _held_out(rows: Sequence[EvalRow]) -> str:
    """Compares the test losses, which neither was chosen by."""
    difference = compare(rows, LEARNED, ADAM, "test_loss")
    assert difference is not None
    words = {
        "lower": "lower than",
        "higher": "higher than",
        "tie": "not distinguishable from",
    }
    means = {s.optimizer: s for s in summarize(rows)}
    own, adam = means[LEARNED], means[ADAM]
    text = (
        f"Over the last 20 steps its training loss is {own.final_loss[0]:.2g}, tuned "
        f"Adam's {adam.final_loss[0]:.2g}. Its test loss after the last step, "
        f"{format_held_out(own.test_loss[0])}{flag(own)}, is "
    )
    if not math.isfinite(difference.mean):
        other = format_held_out(adam.test_loss[0])
        return f"{text}not comparable with tuned Adam's, {other}."
    return (
        f"{text}{words[difference.verdict]} tuned Adam's (paired difference "
        f"{format_paired(difference)})."
    )


def _diverged(rows: Sequence[EvalRow]) -> str:
    """Counts diverged runs of each optimizer; empty without any."""
    counts = []
    for name in names_of(rows):
        runs = [row.diverged for row in rows if row.optimizer == name]
        if any(runs):
            counts.append(f"{name} ({sum(runs)} of {len(runs)})")
    text = f" Diverged runs, which count as the cap: {', '.join(counts)}."
    return text if counts else ""


def _elsewhere(rows: Sequence[EvalRow]) -> str:
    cells = by_cell(rows)
    many = len(cells) > MANY_CELLS
    found: dict[tuple[str, str], list[str]] = {}
    for cell, here in cells.items():
        for name in OPTIMIZERS[1:]:
            if difference := compare(here, LEARNED, name):
                found.setdefault((name, difference.verdict), []).append(cell)

    def counted(where: list[str]) -> str:
        return f"{len(where)} of {len(cells)} cells" if many else ", ".join(where)

    parts = []
    if won := found.get((ADAM, "lower")):
        parts.append(f"Its mean loss is lower than tuned Adam's in: {counted(won)}.")
    if tied := found.get((ADAM, "tie")):
        parts.append(f"Not distinguishable from tuned Adam: {counted(tied)}.")
    lost = {
        name: where for (name, verdict), where in found.items() if verdict == "higher"
    }
    if many:
        shown = [f"{name} (in {counted(where)})" for name, where in lost.items()]
    else:
        pairs = ((cell, name) for cell in cells for name in lost if cell in lost[name])
        shown = [f"{name} ({cell})" for cell, name in pairs]
    if lost:
        parts.append(f"Baselines with a lower mean loss: {', '.join(shown)}.")
    else:
        parts.append("No baseline has a lower mean loss in any cell.")
    for figure in ("final", "test"):
        worse = [
            cell for cell, here in cells.items() if _is_higher(here, f"{figure}_loss")
        ]
        if worse:
            where = counted(worse)
            parts.append(f"Tuned Adam has the lower {figure} loss in: {where}.")
    return " ".join(parts)


def _is_higher(rows: Sequence[EvalRow], figure: str) -> bool:
    """Whether the learned optimizer's figure is higher than tuned Adam's in a cell.

    One that is not finite is, wherever Adam's is finite.
    """
    pair = compare(rows, LEARNED, ADAM, figure)
    if pair is None or pair.verdict == "higher":
        return pair is not None
    own, adam = (
        [getattr(row, figure) for row in rows if row.optimizer == name]
        for name in (LEARNED, ADAM)
    )
    return not all(map(math.isfinite, own)) and all(map(math.isfinite, adam))


def scaling_lines(rows: Sequence[EvalRow]) -> list[str]:
    """Relates the learned optimizer's mean loss in each cell to its trained cell.

    Adam's ratio stands beside it, as a longer or wider run has a lower mean by itself.
    Losses are normalized, as cells may differ in their unit.
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
        ratio = summary.normalized_loss / own.normalized_loss
        text = f"{cell}: {ratio:.2f} × its own mean loss in “{trained}”"
        if adam and (there := means.get((cell, ADAM))):
            ratio = there.normalized_loss / adam.normalized_loss
            text += f" (tuned Adam: {ratio:.2f} ×)"
        lines.append(f"{text}, final loss {summary.final_loss[0]:.2g}{flag(summary)}")
    return lines


def format_held_out(loss: float, digits: int = 3) -> str:
    """Formats a held-out loss, which has no upper bound."""
    return f"{loss:.3g}" if abs(loss) >= 1e4 else f"{loss:.{digits}f}"


def format_error(value: tuple[float, float]) -> str:
    """Formats a mean and its standard error."""
    return f"{value[0]:.4f} ± {value[1]:.4f}"


def format_paired(difference: Paired) -> str:
    """Formats a mean difference and its interval."""
    text = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    return text.replace("-", "−")
