"""A learned optimizer and its baselines through all cells of a suite.

`evaluation.plan` says who runs where. Nothing of this is specific to a kind of task:
the task says itself what a row says of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import jax

from configuration import encoding
from evaluation import run
from evaluation.plan import (
    ADAM,
    ADAM_LONG,
    BASELINES,
    LEARNED,
    MU_ADAM,
    MU_ADAM_TUNED,
    SEEDS,
    CellTuning,
    for_learned,
    optimizers,
    parametrize,
    source_of_transfer,
)
from evaluation.report.speed_up import REFERENCE_HORIZONS
from evaluation.results import EvalRow
from evaluation.tune import Scheduled, Tuning, scheduled_theta, tune
from lopt.baselines import Schedule
from lopt.release import registry
from lopt.release.artifact import Artifact
from metatrain.streaming import HostDataset, load
from parametrization.rules import STANDARD
from tasks.base import Dataset, Task
from tasks.modelled import ModelTask
from tasks.suites import Cell, Suite

WORKERS = 2
"""Jobs at once: one compiles, on one core, while another trains."""

Data = Dataset | HostDataset


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
    *,
    stream: bool = False,
    also: Sequence[str] = (),
) -> tuple[list[EvalRow], list[CellTuning]]:
    """Runs everything; every row is on the seeds given, none of them a tuning seed.

    Args:
        artifact: the learned optimizer; its own rules and base width are used.
        suite: cells that can run here (see `evaluation.plan.runnable`).
        cache_dir: of tunings; None tunes anew.
        seeds: of the reported runs, the same for all optimizers.
        report: called with a line after each optimizer of each cell.
        stream: whether training rows stay on the host (see `metatrain.streaming`).
        also: more baselines, keys of `evaluation.plan.MORE`.

    Raises:
        ValueError: if the suite has more than one trained cell.
    """
    jobs = _jobs(suite, also)
    transferred: Future[_Outcome]

    def work(cell: Cell, name: str) -> _Outcome:
        begin = time.perf_counter()
        tuning = None
        data = load(cell.task, stream=stream)
        if name == LEARNED:
            rows = _learned_rows(artifact, cell, seeds, data)
        elif name == MU_ADAM:
            assert suite.trained is not None
            found = transferred.result().tuning
            rows = _transferred_rows(found, suite.trained, cell, seeds, data)
        else:
            rows, tuning = _tuned_rows(name, cell, seeds, data, cache_dir)
        if name == ADAM and suite.aggregate:
            rows += _long_rows(tuning, cell, seeds, data)
        return _Outcome(cell, name, rows, tuning, time.perf_counter() - begin)

    outcomes = []
    pool = ThreadPoolExecutor(WORKERS)
    try:
        # Begun before all others, so no job can wait for one that never begins.
        transferred = pool.submit(work, *jobs[0])
        pending = [transferred, *(pool.submit(work, *job) for job in jobs[1:])]
        for done in as_completed(pending):
            outcomes.append(done.result())
            report(_line(outcomes[-1]))
    finally:
        # After an error or an interruption nobody waits for what is still running.
        pool.shutdown(wait=False, cancel_futures=True)
    order = [(c.name, n) for c in suite.cells for n in optimizers(suite, c, also)]
    rows = [row for outcome in outcomes for row in outcome.rows]
    rows.sort(key=lambda row: order.index((row.cell, row.optimizer)))
    tunings = [
        CellTuning(outcome.cell.name, outcome.name, outcome.tuning)
        for outcome in outcomes
        if outcome.tuning is not None
    ]
    tunings.sort(key=lambda tuning: order.index(tuning[:2]))
    return rows, tunings


def _jobs(suite: Suite, also: Sequence[str]) -> list[tuple[Cell, str]]:
    """What is waited for first, then the largest: it takes longest."""
    jobs = [
        (cell, name)
        for cell in suite.cells
        for name in optimizers(suite, cell, also)
        if name != ADAM_LONG  # a part of tuned Adam's job
    ]
    if not jobs:
        raise ValueError(f"the suite {suite.name!r} has no cell to run")
    sizes = {cell.name: _size(cell.task) * cell.num_steps for cell in suite.cells}
    jobs.sort(key=lambda job: -sizes[job[0].name])
    first = (suite.trained, source_of_transfer(suite))
    jobs.sort(key=lambda job: job != first)
    return jobs


def _size(task: Task) -> int:
    """Number of parameters."""
    params = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _learned_rows(
    artifact: Artifact, cell: Cell, seeds: Sequence[int], data: Data
) -> list[EvalRow]:
    lopt = artifact.optimizer
    task = for_learned(cell.task, artifact)
    result = run.evaluate(task, lopt, artifact.theta, cell.num_steps, seeds, data)
    about = {
        "class": type(lopt).__name__,
        "optimizer": encoding.encode(lopt, registry.KINDS),
    }
    return _rows(LEARNED, cell, task, seeds, result, about)


def _tuned_rows(
    name: str,
    cell: Cell,
    seeds: Sequence[int],
    data: Data,
    cache_dir: str | Path | None,
) -> tuple[list[EvalRow], Tuning]:
    baseline = BASELINES[name]
    task = parametrize(cell.task, baseline.rules)
    tuning = tune(task, baseline, cell.num_steps, dataset=data, cache_dir=cache_dir)
    provenance = {
        "tuned_at": cell.name,
        "tuning_runs": tuning.num_runs,
        "tuning_inner_steps": tuning.inner_steps,
    }
    return _baseline_rows(name, name, tuning, cell, seeds, data, provenance), tuning


def _long_rows(
    tuning: Tuning | None, cell: Cell, seeds: Sequence[int], data: Data
) -> list[EvalRow]:
    """Tuned Adam with its rate and schedule for four times as long."""
    assert tuning is not None
    steps = REFERENCE_HORIZONS * cell.num_steps
    about = {"tuned_at": cell.name, "tuning_runs": 0, "tuning_inner_steps": 0}
    return _baseline_rows(ADAM_LONG, ADAM, tuning, cell, seeds, data, about, steps)


def _transferred_rows(
    tuning: Tuning | None,
    trained: Cell,
    cell: Cell,
    seeds: Sequence[int],
    data: Data,
) -> list[EvalRow]:
    assert tuning is not None
    about = {"tuned_at": trained.name, "tuning_runs": 0, "tuning_inner_steps": 0}
    return _baseline_rows(MU_ADAM, MU_ADAM_TUNED, tuning, cell, seeds, data, about)


def _baseline_rows(
    name: str,
    baseline: str,
    tuning: Tuning,
    cell: Cell,
    seeds: Sequence[int],
    data: Data,
    provenance: dict[str, Any],
    num_steps: int | None = None,
) -> list[EvalRow]:
    """Runs one of `BASELINES` with the rate and the schedule that were found."""
    lopt = BASELINES[baseline]
    task = parametrize(cell.task, lopt.rules)
    num = len(seeds)
    schedules: list[Schedule] = [tuning.schedule] * num
    theta = scheduled_theta([tuning.learning_rate] * num, schedules)
    steps = num_steps or cell.num_steps
    result = run.evaluate_each(task, Scheduled(lopt), theta, steps, seeds, data)
    chosen = {"learning_rate": tuning.learning_rate, "schedule": tuning.schedule}
    return _rows(name, cell, task, seeds, result, chosen | provenance)


def _rows(
    name: str,
    cell: Cell,
    task: Task,
    seeds: Sequence[int],
    result: run.RunResult,
    provenance: dict[str, Any],
) -> list[EvalRow]:
    model = task.model if isinstance(task, ModelTask) else None
    return [
        EvalRow(
            optimizer=name,
            cell=cell.name,
            axis=cell.axis,
            task=type(task).__name__,
            family=task.family,
            widths=model.layer_widths if model else (),
            depth=task.depth,
            base_width=model.base_width if model else None,
            parametrization=(model.rules if model else STANDARD).name,
            batch_size=getattr(task, "batch_size", None),
            dataset=task.data_name,
            resolution=task.resolution,
            unit=task.unit,
            loss_at_chance=task.loss_at_chance,
            steps=result.curve.shape[1],
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
    rows = [row for row in outcome.rows if row.optimizer == outcome.name]
    mean = sum(row.mean_loss for row in rows) / len(rows)
    diverged = sum(row.diverged for row in rows)
    note = f", {diverged} of {len(rows)} diverged" if diverged else ""
    return (
        f"{outcome.cell.name}: {outcome.name}: mean loss {mean:.4f}{note} "
        f"({outcome.seconds:.1f} s)"
    )
