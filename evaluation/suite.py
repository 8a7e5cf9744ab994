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
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from evaluation import run
from evaluation.results import EvalRow
from evaluation.tune import Scheduled, Tuning, scheduled_theta, tune
from lopt.artifact import Artifact
from lopt.baselines import SGD, Adam, Baseline, Schedule
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
WORKERS = 2
"""Jobs at once: one compiles, on one core, while another trains."""

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
    model = task.model.with_rules(rules)
    model = model.with_base_width(base_width) if base_width else model
    return dataclasses.replace(task, model=model)


class _Outcome(NamedTuple):
    """What one job of a suite returns."""

    cell: Cell
    name: str
    rows: list[EvalRow]
    tuning: Tuning | None
    seconds: float


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
    # What is waited for first, then the widest: it takes longest.
    jobs = [(cell, name) for cell in suite for name in optimizers(cell)]
    jobs.sort(key=lambda job: -max(job[0].task.model.layer_widths))
    jobs.sort(key=lambda job: job != (trained[0], ADAM))

    def work(cell: Cell, name: str) -> _Outcome:
        begin = time.perf_counter()
        tuning = None
        if name == LEARNED:
            rows = _learned_rows(artifact, cell, seeds)
        elif name == MU_ADAM:
            rows = _transferred_rows(adam.result().tuning, trained[0], cell, seeds)
        else:
            rows, tuning = _tuned_rows(name, cell, seeds, cache_dir)
        return _Outcome(cell, name, rows, tuning, time.perf_counter() - begin)

    outcomes = []
    pool = ThreadPoolExecutor(WORKERS)
    try:
        # Begun before all others, so no job can wait for one that never begins.
        adam = pool.submit(work, *jobs[0])
        pending = [adam, *(pool.submit(work, *job) for job in jobs[1:])]
        for done in as_completed(pending):
            outcomes.append(done.result())
            report(_line(outcomes[-1]))
    finally:
        # After an error or an interruption nobody waits for what is still running.
        pool.shutdown(wait=False, cancel_futures=True)
    order = [(cell.name, name) for cell in suite for name in optimizers(cell)]
    outcomes.sort(key=lambda outcome: order.index((outcome.cell.name, outcome.name)))
    rows = [row for outcome in outcomes for row in outcome.rows]
    tunings = [
        CellTuning(outcome.cell.name, outcome.name, outcome.tuning)
        for outcome in outcomes
        if outcome.tuning is not None
    ]
    return rows, tunings


def _learned_rows(
    artifact: Artifact, cell: Cell, seeds: Sequence[int]
) -> list[EvalRow]:
    lopt = artifact.optimizer
    task = parametrize(cell.task, lopt.rules, artifact.base.get("width"))
    result = run.evaluate(task, lopt, artifact.theta, cell.num_steps, seeds)
    about = {"class": type(lopt).__name__, "hidden_size": lopt.hidden_size}
    return _rows(LEARNED, cell, task, seeds, result, about)


def _tuned_rows(
    name: str, cell: Cell, seeds: Sequence[int], cache_dir: str | Path | None
) -> tuple[list[EvalRow], Tuning]:
    baseline = BASELINES[name]
    task = parametrize(cell.task, STANDARD)
    tuning = tune(task, baseline, cell.num_steps, cache_dir=cache_dir)
    provenance = {
        "tuned_at": cell.name,
        "tuning_runs": tuning.num_runs,
        "tuning_inner_steps": tuning.inner_steps,
    }
    rows = _baseline_rows(name, baseline, tuning, task, cell, seeds, provenance)
    return rows, tuning


def _baseline_rows(
    name: str,
    baseline: Baseline,
    tuning: Tuning,
    task: ImageClassification,
    cell: Cell,
    seeds: Sequence[int],
    provenance: dict[str, Any],
) -> list[EvalRow]:
    num = len(seeds)
    schedules: list[Schedule] = [tuning.schedule] * num
    theta = scheduled_theta([tuning.learning_rate] * num, schedules)
    result = run.evaluate_each(task, Scheduled(baseline), theta, cell.num_steps, seeds)
    chosen = {"learning_rate": tuning.learning_rate, "schedule": tuning.schedule}
    return _rows(name, cell, task, seeds, result, chosen | provenance)


def _transferred_rows(
    tuning: Tuning | None, trained: Cell, cell: Cell, seeds: Sequence[int]
) -> list[EvalRow]:
    assert tuning is not None
    # At the base shape the two parametrizations are the same bits, so the learning
    # rate that is best for Adam in the trained cell is μAdam's as well.
    model = trained.task.model
    if set(model.layer_widths) != {model.base_width}:
        raise ValueError(
            f"the trained cell's widths {model.layer_widths} are not its base width "
            f"{model.base_width}: μAdam would need its own tuning"
        )
    task = parametrize(cell.task, ADAM_LIKE)
    lopt = Adam(rules=ADAM_LIKE)
    provenance = {
        "tuned_at": trained.name,
        "tuning_runs": 0,
        "tuning_inner_steps": 0,
    }
    return _baseline_rows(MU_ADAM, lopt, tuning, task, cell, seeds, provenance)


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
            widths=task.model.layer_widths,
            depth=task.model.depth,
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


def _line(outcome: _Outcome) -> str:
    rows = outcome.rows
    mean = sum(row.mean_loss for row in rows) / len(rows)
    diverged = sum(row.diverged for row in rows)
    note = f", {diverged} of {len(rows)} diverged" if diverged else ""
    return (
        f"{outcome.cell.name}: {outcome.name}: mean loss {mean:.4f}{note} "
        f"({outcome.seconds:.1f} s)"
    )
