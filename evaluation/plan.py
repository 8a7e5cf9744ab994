"""Who runs where: the optimizers of each cell, and the cells that can run here.

The learned optimizer gets no tuning anywhere. Baselines do: Adam, in the standard
parametrization, anew in every cell; AdamW and SGD with momentum in the trained cell;
and one baseline that, like the learned optimizer, is carried to other settings
untouched: μAdam with the learning rate that was best in the trained cell. At the base
shape Adam and μAdam are the same bits, so there the rate is tuned Adam's; elsewhere
μAdam is tuned for itself. A suite without a trained cell has nothing to carry.

More baselines (`MORE`) can be asked for: each is tuned anew in every cell, as Adam is.
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
"""Tuned Adam for four times as long: what speed-ups are measured on, and not a row of
any table."""
MORE: dict[str, tuple[str, Baseline]] = {
    "nadamw": ("NAdamW, tuned", Adam(weight_decay=1e-2, nesterov=True)),
    "lion": ("Lion, tuned", Lion(weight_decay=1e-2)),
    "muon": ("Muon, tuned", Muon(weight_decay=1e-2)),
    "adafactor": ("Adafactor, tuned", Adafactor()),
    "schedule_free": ("schedule-free AdamW, tuned", ScheduleFreeAdamW()),
    "prodigy": ("Prodigy, tuned", Prodigy()),
    "nesterov": ("Nesterov, tuned", SGD(momentum=0.9, nesterov=True)),
}
"""Baselines on request, by the name on a command line: name of rows, optimizer."""
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
    """What was tuned where, for the report."""

    cell: str
    optimizer: str
    tuning: Tuning


class Skipped(NamedTuple):
    """A cell that cannot run here."""

    cell: str
    reason: str


def optimizers(suite: Suite, cell: Cell, also: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the optimizers that are run in a cell, keys of `MORE` among them."""
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
    """Whose tuning in the trained cell is the one that μAdam carries elsewhere."""
    trained = suite.trained
    return ADAM if trained is None or at_base(trained.task) else MU_ADAM_TUNED


def expected_runs(
    suite: Suite, seeds: Sequence[int] = SEEDS, also: Sequence[str] = ()
) -> Iterator[tuple[str, str, int]]:
    """Every (cell, optimizer, seed) that a complete evaluation has."""
    for cell in suite.cells:
        for name in optimizers(suite, cell, also):
            for seed in seeds:
                yield cell.name, name, seed


def runnable(suite: Suite, artifact: Artifact) -> tuple[Suite, list[Skipped]]:
    """The suite without the cells that cannot run here, and why they cannot."""
    skipped = []
    for cell in suite.cells:
        if reason := _obstacle(cell, artifact):
            skipped.append(Skipped(cell.name, reason))
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
    """The task with the learned optimizer's parametrization and base width."""
    return parametrize(task, artifact.optimizer.rules, artifact.base.get("width"))


def parametrize(task: Task, rules: Rules, base_width: int | None = None) -> Task:
    """The same task in another parametrization, or with another base width."""
    task = task.with_rules(rules)
    if not base_width or not isinstance(task, ModelTask):
        return task
    changed: Any = task
    return dataclasses.replace(changed, model=task.model.with_base_width(base_width))


def at_base(task: Task) -> bool:
    """Whether every parameter has its base shape: all parametrizations are the same."""
    specs = jax.tree.leaves(task.specs())
    return all(s.shape == s.base_shape and s.depth_mult == 1.0 for s in specs)
