"""A learned optimizer and its baselines through all cells of a suite.

The learned optimizer gets no tuning anywhere. Baselines do: Adam, in the standard
parametrization, anew in every cell; AdamW and SGD with momentum in the trained cell;
and one baseline that, like the learned optimizer, is carried to new widths, depths and
horizons untouched: μAdam with the learning rate that was best in the trained cell.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from evaluation import run
from evaluation.results import EvalRow
from evaluation.tune import Tuning, tune
from lopt.artifact import Artifact
from lopt.baselines import SGD, Adam, Baseline
from parametrization.rules import ADAM_LIKE, STANDARD, Rules
from tasks.classification import ImageClassification
from tasks.suites import Cell, Suite

LEARNED = "learned"
ADAM = "Adam, tuned"
ADAMW = "AdamW, tuned"
SGDM = "SGD, tuned"
MU_ADAM = "μAdam, transferred"
OPTIMIZERS = (LEARNED, ADAM, MU_ADAM, ADAMW, SGDM)
"""Names of rows, in the order of tables."""
SEEDS = (0, 1, 2, 3, 4)

BASELINES: dict[str, Baseline] = {
    ADAM: Adam(),
    ADAMW: Adam(weight_decay=1e-2),
    SGDM: SGD(momentum=0.9),
}


class CellTuning(NamedTuple):
    """What was tuned where, for the report."""

    cell: str
    optimizer: str
    tuning: Tuning


def optimizers(cell: Cell) -> tuple[str, ...]:
    """Names of the optimizers that are run in a cell."""
    if cell.axis == "trained":
        return (LEARNED, ADAM, ADAMW, SGDM)
    return (LEARNED, ADAM, MU_ADAM)


def expected_runs(
    suite: Suite, seeds: Sequence[int] = SEEDS
) -> Iterator[tuple[str, str, int]]:
    """Every (cell, optimizer, seed) that a complete evaluation has."""
    for cell in suite:
        for name in optimizers(cell):
            for seed in seeds:
                yield cell.name, name, seed


def parametrize(
    task: ImageClassification, rules: Rules, base_width: int | None = None
) -> ImageClassification:
    """The same task in another parametrization, or with another base width."""
    model = dataclasses.replace(
        task.model, rules=rules, base_width=base_width or task.model.base_width
    )
    return dataclasses.replace(task, model=model)


def evaluate_suite(
    artifact: Artifact,
    suite: Suite,
    cache_dir: str | Path | None,
    seeds: Sequence[int] = SEEDS,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[EvalRow], list[CellTuning]]:
    """Runs everything; every row is on the seeds given, none of them a tuning seed.

    Args:
        artifact: the learned optimizer; its own rules and base width are used.
        suite: cells, one of which is the trained one.
        cache_dir: of tunings; None tunes anew.
        seeds: of the reported runs, the same for all optimizers.
        report: called with a line after each optimizer of each cell.

    Raises:
        ValueError: if the suite has not exactly one trained cell.
    """
    trained = [cell for cell in suite if cell.axis == "trained"]
    if len(trained) != 1:
        raise ValueError(f"the suite has {len(trained)} trained cells, must have one")
    rows: list[EvalRow] = []
    tunings: dict[tuple[str, str], Tuning] = {}
    for cell in (*trained, *(cell for cell in suite if cell.axis != "trained")):
        for name in optimizers(cell):
            begin = time.perf_counter()
            if name == LEARNED:
                new = _learned_rows(artifact, cell, seeds)
            elif name == MU_ADAM:
                tuning = tunings[trained[0].name, ADAM]
                new = _transferred_rows(tuning, trained[0], cell, seeds)
            else:
                task = parametrize(cell.task, STANDARD)
                tuning = tune(
                    task, BASELINES[name], cell.num_steps, cache_dir=cache_dir
                )
                tunings[cell.name, name] = tuning
                new = _baseline_rows(name, BASELINES[name], tuning, task, cell, seeds)
            rows += new
            report(_line(cell, name, new, time.perf_counter() - begin))
    order = [cell.name for cell in suite]
    rows.sort(key=lambda row: order.index(row.cell))
    return rows, [CellTuning(*where, tuning) for where, tuning in tunings.items()]


def _learned_rows(
    artifact: Artifact, cell: Cell, seeds: Sequence[int]
) -> list[EvalRow]:
    lopt = artifact.optimizer
    task = parametrize(cell.task, lopt.rules, artifact.base.get("width"))
    result = run.evaluate(task, lopt, artifact.theta, cell.num_steps, seeds)
    about = {"class": type(lopt).__name__, "hidden_size": lopt.hidden_size}
    return _rows(LEARNED, cell, task, seeds, result, about)


def _baseline_rows(
    name: str,
    baseline: Baseline,
    tuning: Tuning,
    task: ImageClassification,
    cell: Cell,
    seeds: Sequence[int],
    tuned_at: str | None = None,
) -> list[EvalRow]:
    lopt = dataclasses.replace(baseline, schedule=tuning.schedule)
    theta = {"learning_rate": jnp.full(len(seeds), tuning.learning_rate)}
    result = run.evaluate_each(task, lopt, theta, cell.num_steps, seeds)
    about = {
        "learning_rate": tuning.learning_rate,
        "schedule": tuning.schedule,
        "tuned_at": tuned_at or cell.name,
        "tuning_runs": 0 if tuned_at else tuning.num_runs,
        "tuning_inner_steps": 0 if tuned_at else tuning.inner_steps,
    }
    return _rows(name, cell, task, seeds, result, about)


def _transferred_rows(
    tuning: Tuning, trained: Cell, cell: Cell, seeds: Sequence[int]
) -> list[EvalRow]:
    # At the base shape the two parametrizations are the same bits, so the learning
    # rate that is best for Adam in the trained cell is μAdam's as well.
    if set(trained.task.model.widths) != {trained.task.model.base_width}:
        raise ValueError(
            f"the trained cell's widths {trained.task.model.widths} are not its base "
            f"width {trained.task.model.base_width}: μAdam would need its own tuning"
        )
    task = parametrize(cell.task, ADAM_LIKE)
    lopt = Adam(rules=ADAM_LIKE)
    return _baseline_rows(MU_ADAM, lopt, tuning, task, cell, seeds, trained.name)


def _rows(
    name: str,
    cell: Cell,
    task: ImageClassification,
    seeds: Sequence[int],
    result: run.RunResult,
    provenance: dict[str, Any],
) -> list[EvalRow]:
    return [
        EvalRow(
            optimizer=name,
            cell=cell.name,
            axis=cell.axis,
            widths=task.model.widths,
            depth=len(task.model.widths),
            base_width=task.model.base_width,
            parametrization=task.model.rules.name,
            batch_size=task.batch_size,
            dataset=type(task.data).__name__,
            steps=cell.num_steps,
            seed=seed,
            curve=tuple(result.curve[i].tolist()),
            mean_loss=float(result.mean_loss[i]),
            final_loss=float(result.final_loss[i]),
            valid_loss=float(result.valid_loss[i]),
            valid_accuracy=float(result.valid_accuracy[i]),
            test_loss=float(result.test_loss[i]),
            test_accuracy=float(result.test_accuracy[i]),
            diverged=bool(result.diverged[i]),
            capped_steps=int(result.capped_steps[i]),
            seconds=float(result.seconds[i]),
            provenance=provenance,
        )
        for i, seed in enumerate(seeds)
    ]


def _line(cell: Cell, name: str, rows: Sequence[EvalRow], seconds: float) -> str:
    mean = sum(row.mean_loss for row in rows) / len(rows)
    diverged = sum(row.diverged for row in rows)
    note = f", {diverged} of {len(rows)} diverged" if diverged else ""
    return f"{cell.name}: {name}: mean loss {mean:.4f}{note} ({seconds:.1f} s)"
