"""Runs a learned optimizer and its baselines through all cells of a suite.

`evaluation.plan` says which optimizers run in which cell. The task itself says what a
row tells of it, so nothing here depends on the kind of task.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from configuration import encoding, identity
from configuration.folders import locked
from evaluation import run, tuning_cache
from evaluation.identity import Evaluation
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
from evaluation.report.budget import meta_training_steps
from evaluation.report.speed_up import REFERENCE_HORIZONS
from evaluation.results import EvalRow
from evaluation.tune import Scheduled, Tuning, scheduled_theta, tune
from lopt.release import registry
from lopt.release.artifact import Artifact
from metatrain.streaming import HostDataset, load
from parametrization.rules import STANDARD
from tasks.base import Dataset, Task
from tasks.modelled import ModelTask
from tasks.suites import Cell, Suite

WORKERS = 2
"""Concurrent jobs: one compiles, on one core, while another trains."""

Data = Dataset | HostDataset


@dataclasses.dataclass(frozen=True)
class _Stored:
    """What a file keeps of an outcome."""

    rows: tuple[EvalRow, ...]
    tuning: Tuning | None
    seconds: float


class _Outcome(NamedTuple):
    """Result of one job of a suite."""

    cell: Cell
    name: str
    rows: list[EvalRow]
    tuning: Tuning | None
    seconds: float
    stored: bool = False


class Parts:
    """Outcomes of single jobs of an evaluation, each in a file under its identity."""

    def __init__(self, folder: Path, evaluation: Evaluation) -> None:
        """Args: where files are; what they belong to."""
        self._folder, self._evaluation = folder, evaluation
        here = identity.surroundings()
        for cell in evaluation.suite.cells:
            about = [evaluation.identity["cells"][cell.name], here]
            run.renew(cell.task, identity.digest(about))

    def of(
        self,
        cell: Cell,
        name: str,
        compute: Callable[[], _Outcome],
        report: Callable[[str], None],
    ) -> _Outcome:
        """Returns a job's outcome; computes and stores it if it is not stored.

        One process at a time computes a job; others report whom they wait for.

        Raises:
            ValueError: if the data has changed since the evaluation began.
        """
        about = self._evaluation.job(cell, name)
        path = tuning_cache.file_of(self._folder, about)

        def waiting(owner: str) -> None:
            report(f"{cell.name}: {name}: waiting for process {owner}")

        with locked(path.with_suffix(".lock"), wait=True, waiting=waiting):
            if (stored := tuning_cache.read(self._folder, about)) is not None:
                return self._read(cell, name, stored)
            outcome = compute()
            self._evaluation.check(cell)
            mark = {"identity": identity.digest(about)}
            rows = tuple(
                dataclasses.replace(row, provenance={**row.provenance, **mark})
                for row in outcome.rows
            )
            kept = _Stored(rows, outcome.tuning, outcome.seconds)
            encoded = encoding.encode(kept, {}, nan=True)
            tuning_cache.write(self._folder, about, encoded)
            return outcome._replace(rows=list(rows))

    def _read(self, cell: Cell, name: str, stored: dict[str, Any]) -> _Outcome:
        decoded = encoding.decode(_Stored, stored, "part", {})
        rows, tuning, seconds = list(decoded.rows), decoded.tuning, decoded.seconds
        return _Outcome(cell, name, rows, tuning, seconds, stored=True)


def evaluate_suite(
    artifact: Artifact,
    suite: Suite,
    cache_dir: str | Path | None,
    seeds: Sequence[int] = SEEDS,
    report: Callable[[str], None] = lambda line: None,
    *,
    stream: bool = False,
    also: Sequence[str] = (),
    parts: Parts | None = None,
    only: tuple[str, str] | None = None,
) -> tuple[list[EvalRow], list[CellTuning]]:
    """Runs every optimizer in every cell, on the same seeds.

    Args:
        artifact: the learned optimizer; its own rules and base width are used.
        suite: cells that can run here (see `evaluation.plan.runnable`).
        cache_dir: folder of cached tunings; None tunes anew.
        seeds: seeds of the reported runs, none of them a tuning seed.
        report: called with a line after each optimizer of each cell.
        stream: whether training rows stay on the host (see `metatrain.streaming`).
        also: more baselines, keys of `evaluation.plan.MORE`.
        parts: stored jobs, which are read and not run again; others are added. Their
            evaluation must be of these cells, this artifact and these seeds.
        only: the cell and optimizer of the only job to run, after that which it needs.

    Returns:
        Rows and tunings, in the order of cells and optimizers.

    Raises:
        ValueError: if the suite has more than one trained cell.
    """
    jobs = suite_jobs(suite, also)
    if only is not None:
        needed = jobs[:1] if only[1] == MU_ADAM else []
        jobs = needed + [job for job in jobs if (job[0].name, job[1]) == only]
    transferred: Future[_Outcome]

    def work(cell: Cell, name: str) -> _Outcome:
        compute = partial(run_job, cell, name)
        if parts is None:
            return compute()
        return parts.of(cell, name, compute, report)

    here = identity.surroundings()

    def run_job(cell: Cell, name: str) -> _Outcome:
        begin = time.perf_counter()
        if changed := identity.differences(here, identity.surroundings()):
            raise ValueError(
                f"{identity.described(changed)} in a thread: a setting that is made by "
                "a `with` block does not reach the jobs; use jax.config.update"
            )
        data = load(cell.task, stream=stream)
        run_tuned = partial(_baseline_rows, cell, seeds, data)
        tuning = None
        if name == LEARNED:
            rows = _learned_rows(artifact, cell, seeds, data)
        elif name == MU_ADAM:
            trained, found = suite.trained, transferred.result().tuning
            assert trained is not None and found is not None
            rows = run_tuned(MU_ADAM, MU_ADAM_TUNED, found, trained.name)
        else:
            baseline, steps = BASELINES[name], cell.num_steps
            task = parametrize(cell.task, baseline.rules)
            tuning = tune(task, baseline, steps, dataset=data, cache_dir=cache_dir)
            rows = run_tuned(name, name, tuning, cell.name)
            if name == ADAM and suite.aggregate:
                rows += run_tuned(ADAM_LONG, ADAM, tuning, cell.name)
        return _Outcome(cell, name, rows, tuning, time.perf_counter() - begin)

    outcomes = []
    pool = ThreadPoolExecutor(WORKERS)
    try:
        # Submitted first, so no job can wait for one that never begins.
        transferred = pool.submit(work, *jobs[0])
        pending = [transferred, *(pool.submit(work, *job) for job in jobs[1:])]
        for done in as_completed(pending):
            outcomes.append(done.result())
            report(f"[{len(outcomes)}/{len(pending)}] {_line(outcomes[-1])}")
    finally:
        # After an error or an interruption, do not wait for running jobs.
        pool.shutdown(wait=False, cancel_futures=True)
    return _in_order(outcomes, suite, also)


def _in_order(
    outcomes: Sequence[_Outcome], suite: Suite, also: Sequence[str]
) -> tuple[list[EvalRow], list[CellTuning]]:
    """Returns rows and tunings in the order of cells and optimizers."""
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


def suite_jobs(suite: Suite, also: Sequence[str] = ()) -> list[tuple[Cell, str]]:
    """Lists the jobs: first the one that others wait for, then the longest.

    Raises:
        ValueError: if the suite has no cell.
    """
    jobs = [
        (cell, name)
        for cell in suite.cells
        for name in optimizers(suite, cell, also)
        if name != ADAM_LONG  # a part of tuned Adam's job
    ]
    if not jobs:
        raise ValueError(f"the suite {suite.name!r} has no cell to run")
    sizes = {
        cell.name: run.num_parameters(cell.task) * cell.num_steps
        for cell in suite.cells
    }
    jobs.sort(key=lambda job: -sizes[job[0].name])
    first = (suite.trained, source_of_transfer(suite))
    jobs.sort(key=lambda job: job != first)
    return jobs


def _learned_rows(
    artifact: Artifact, cell: Cell, seeds: Sequence[int], data: Data
) -> list[EvalRow]:
    lopt = artifact.optimizer
    task = for_learned(cell.task, artifact)
    result = run.evaluate(task, lopt, artifact.theta, cell.num_steps, seeds, data)
    encoded = encoding.encode(lopt, registry.KINDS)
    about = {
        "class": type(lopt).__name__,
        "optimizer": encoded,
        "meta_training_inner_steps": meta_training_steps(artifact.provenance),
    }
    return _rows(LEARNED, cell, task, seeds, result, about)


def _baseline_rows(
    cell: Cell,
    seeds: Sequence[int],
    data: Data,
    name: str,
    baseline: str,
    tuning: Tuning,
    tuned_at: str,
) -> list[EvalRow]:
    """Runs a baseline with the rate and the schedule of a tuning.

    Args:
        cell: where it runs.
        seeds: one run each.
        data: the cell's data.
        name: name of the rows; rows that reuse a tuning have another than `baseline`.
        baseline: key of `BASELINES`.
        tuning: the tuning.
        tuned_at: name of the cell of the tuning.
    """
    lopt = BASELINES[baseline]
    task = parametrize(cell.task, lopt.rules)
    theta = scheduled_theta([tuning.learning_rate], [tuning.schedule])
    theta = jax.tree.map(lambda x: x[0], theta)
    steps = cell.num_steps * (REFERENCE_HORIZONS if name == ADAM_LONG else 1)
    # As the learned optimizer runs: one program of exactly these seeds. Chunks of the
    # tuning's size would save its compilation, but a run's share of their time depends
    # on how many runs the chunk holds, so optimizers would not be timed alike.
    result = run.evaluate(task, Scheduled(lopt), theta, steps, seeds, data)
    reused = name != baseline
    provenance = {
        "learning_rate": tuning.learning_rate,
        "schedule": tuning.schedule,
        "tuned_at": tuned_at,
        "tuning_runs": 0 if reused else tuning.num_runs,
        "tuning_inner_steps": 0 if reused else tuning.inner_steps,
    }
    return _rows(name, cell, task, seeds, result, provenance)


def _rows(
    name: str,
    cell: Cell,
    task: Task,
    seeds: Sequence[int],
    result: run.RunResult,
    provenance: dict[str, Any],
) -> list[EvalRow]:
    model = task.model if isinstance(task, ModelTask) else None
    figures = result._asdict()
    curves = figures.pop("curve")
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
            steps=curves.shape[1],
            seed=seed,
            curve=tuple(curves[i].tolist()),
            **{figure: values[i].item() for figure, values in figures.items()},
            provenance=provenance,
            readout_init=model.readout_init if model else "zero",
        )
        for i, seed in enumerate(seeds)
    ]


def _line(outcome: _Outcome) -> str:
    rows = [row for row in outcome.rows if row.optimizer == outcome.name]
    mean = sum(row.mean_loss for row in rows) / len(rows)
    diverged = sum(row.diverged for row in rows)
    note = f", {diverged} of {len(rows)} diverged" if diverged else ""
    took = "stored" if outcome.stored else f"{outcome.seconds:.1f} s"
    return f"{outcome.cell.name}: {outcome.name}: mean loss {mean:.4f}{note} ({took})"
