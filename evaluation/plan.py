"""Plan of a suite: the optimizers of each cell, and the cells that can run here.

The learned optimizer is tuned nowhere. Adam, in the standard parametrization, is tuned
anew in every cell; AdamW and SGD with momentum in the trained cell. μAdam, like the
learned optimizer, is carried to other cells untouched, with the learning rate that was
best in the trained cell: tuned Adam's where that has the base shape, as Adam and μAdam
are then the same, and else its own. A suite without a trained cell carries nothing.

More baselines (`MORE`) can be asked for: each is tuned anew in every cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from evaluation.tune import Tuning
from lopt.baselines import (
    SGD,
    Adafactor,
    Adam,
    Baseline,
    Lion,
    Muon,
    Prodigy,
    ScheduleFreeAdamW,
)
from lopt.release.artifact import Artifact
from parametrization.rules import ADAM_LIKE, Rules
from tasks import description
from tasks.base import Task
from tasks.modelled import ModelTask
from tasks.suites import Cell, Suite

LEARNED = "learned"
ADAM = "Adam, tuned"
ADAMW = "AdamW, tuned"
SGDM = "SGD, tuned"
MU_ADAM = "μAdam, transferred"
MU_ADAM_TUNED = "μAdam, tuned"
ADAM_LONG = "Adam, tuned, 4 H"
"""Tuned Adam for four times as long, to measure speed-ups; in no table."""
MORE: dict[str, tuple[str, Baseline]] = {
    "nadamw": ("NAdamW, tuned", Adam(weight_decay=1e-2, nesterov=True)),
    "lion": ("Lion, tuned", Lion(weight_decay=1e-2)),
    "muon": ("Muon, tuned", Muon(weight_decay=1e-2)),
    "adafactor": ("Adafactor, tuned", Adafactor()),
    "schedule_free": ("schedule-free AdamW, tuned", ScheduleFreeAdamW()),
    "prodigy": ("Prodigy, tuned", Prodigy()),
    "nesterov": ("Nesterov, tuned", SGD(momentum=0.9, nesterov=True)),
}
"""Baselines on request: name on a command line -> (name of rows, optimizer)."""
OPTIMIZERS = (
    *(LEARNED, ADAM, MU_ADAM, MU_ADAM_TUNED, ADAMW, SGDM),
    *(name for name, _ in MORE.values()),
)
"""Names of rows, in the order of tables."""
SEEDS = (0, 1, 2, 3, 4)

BASELINES: dict[str, Baseline] = {
    ADAM: Adam(),
    MU_ADAM_TUNED: Adam(rules=ADAM_LIKE),
    ADAMW: Adam(weight_decay=1e-2),
    SGDM: SGD(momentum=0.9),
    **dict(MORE.values()),
}


class CellTuning(NamedTuple):
    """One tuning of a suite, for the report."""

    cell: str
    optimizer: str
    tuning: Tuning


class Skipped(NamedTuple):
    """A cell that cannot run here."""

    cell: str
    reason: str


def optimizers(suite: Suite, cell: Cell, also: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the names of the optimizers in a cell; `also` are keys of `MORE`."""
    names = [LEARNED, ADAM]
    if cell.axis == "trained":
        names += [] if at_base(cell.task) else [MU_ADAM_TUNED]
        names += [ADAMW, SGDM]
    elif suite.trained is not None:
        names.append(MU_ADAM)
    if suite.aggregate:
        names.append(ADAM_LONG)
    names += [MORE[name][0] for name in also]
    return tuple(names)


def source_of_transfer(suite: Suite) -> str:
    """Returns whose tuning in the trained cell μAdam carries to other cells."""
    trained = suite.trained
    return ADAM if trained is None or at_base(trained.task) else MU_ADAM_TUNED


def expected_runs(
    suite: Suite, seeds: Sequence[int] = SEEDS, also: Sequence[str] = ()
) -> Iterator[tuple[str, str, int]]:
    """Yields every (cell, optimizer, seed) of a complete evaluation."""
    for cell in suite.cells:
        for name in optimizers(suite, cell, also):
            for seed in seeds:
                yield cell.name, name, seed


def runnable(suite: Suite, artifact: Artifact) -> tuple[Suite, list[Skipped]]:
    """Splits off the cells that cannot run here, each with the reason."""
    reasons = ((cell.name, _obstacle(cell, artifact)) for cell in suite.cells)
    skipped = [Skipped(name, reason) for name, reason in reasons if reason]
    left_out = {name for name, _ in skipped}
    kept = tuple(cell for cell in suite.cells if cell.name not in left_out)
    return dataclasses.replace(suite, make=lambda: kept), skipped


def _obstacle(cell: Cell, artifact: Artifact) -> str | None:
    if missing := description.missing_data(cell.task):
        return missing
    try:
        cell.task.specs()
        for_learned(cell.task, artifact).specs()
    except ValueError as error:
        return str(error)
    return None


def for_learned(task: Task, artifact: Artifact) -> Task:
    """Gives the task the learned optimizer's parametrization and base width."""
    return parametrize(task, artifact.optimizer.rules, artifact.base.get("width"))


def parametrize(task: Task, rules: Rules, base_width: int | None = None) -> Task:
    """Returns the task in another parametrization and, if given, base width."""
    task = task.with_rules(rules)
    if not base_width or not isinstance(task, ModelTask):
        return task
    changed: Any = task
    return dataclasses.replace(changed, model=task.model.with_base_width(base_width))


def at_base(task: Task) -> bool:
    """Returns whether every parameter has its base shape: all rules then agree."""
    specs = jax.tree.leaves(task.specs())
    return all(s.shape == s.base_shape and s.depth_mult == 1.0 for s in specs)
