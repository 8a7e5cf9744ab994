"""Evaluation of an artifact: `python -m experiments.evaluate --artifact DIR`.

Writes `rows.jsonl` (every run), `report.html` (one static file) and `curves.png`, and
prints the table. Baselines are tuned per cell and cached. Neither a finished evaluation
nor the finished jobs of one that was stopped are repeated, while all they depend on is
the same (`docs/reliability.md`). Cells that cannot run on this machine, mostly for lack
of data, are skipped, which every table says.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configuration import digests, identity
from configuration.fields import configuration, later
from configuration.files import write_bytes
from evaluation import folder
from evaluation.folder import CURVES, REPORT, ROWS
from evaluation.identity import Evaluation
from evaluation.plan import (
    MORE,
    MU_ADAM,
    SEEDS,
    Skipped,
    expected_runs,
    for_learned,
    runnable,
)
from evaluation.report.html import write_report
from evaluation.report.plots import plot_curves, png
from evaluation.report.tables import text_summary
from evaluation.results import EvalRow, missing_runs, write_rows
from evaluation.suite import Parts, evaluate_suite, suite_jobs
from experiments import command_line
from experiments.command_line import InputError, check_folder, reported
from experiments.fleets.job_file import Job, file_name
from experiments.fleets.submission import Cluster, check, run_jobs
from experiments.presets.serialization import encode
from experiments.presets.suites import find_suite
from experiments.run import compilation_cache, run_directory
from experiments.run.environment import describe_machine
from experiments.signals import unwinding
from lopt.release.artifact import Artifact
from metatrain.small_steps import small_steps_warning
from tasks.suites import Suite


@configuration
class Evaluate:
    """Evaluation of a released optimizer against tuned baselines."""

    artifact: Path
    """Folder of the released optimizer."""
    suite: str = "quickstart"
    """Named suite; `python -m experiments.tasks list` lists them."""
    out_dir: Path | None = None
    """Output folder; by default the one that holds the artifact."""
    cache_dir: Path = Path("runs/cache")
    """Folder of tuned baselines."""
    stream: bool = False
    """Keep training data on the host, if it does not fit on the device."""
    also: tuple[str, ...] = ()
    """More baselines to tune: nadamw, lion, muon, adafactor, schedule_free, prodigy,
    nesterov."""
    compilation_cache: bool = later(True)
    """Keep compiled programs in the cache folder, for the next start."""
    fleet: Cluster | None = None
    """Run each optimizer of each cell as a job: on this machine, on SLURM, or (inline)
    one after another."""
    workers: int = 1
    """Jobs of the fleet that run at the same time."""
    slurm: tuple[str, ...] = ()
    """Options of SLURM for each job, as for `experiments.fleet`."""
    part: str | None = None
    """Only run CELL/OPTIMIZER, for a fleet to collect, and write no report."""

    def __post_init__(self) -> None:
        check(self.fleet, self.workers, self.slurm)


def evaluate(arguments: Evaluate, command: str) -> Path:
    """Evaluates an artifact, prints the table, and returns the path of the report.

    Raises:
        InputError: if there is no such suite, none of its cells can run, the artifact
            is damaged, or the folder cannot be written, is in use or belongs to another
            suite.
    """
    also = _more_baselines(arguments.also)
    whole, skipped, evaluation = _load(arguments)
    out_dir = _out_dir(arguments)
    if arguments.fleet:
        _run_fleet(arguments, evaluation, also)
        with reported():
            print(text_summary(folder.stored_rows(out_dir), skipped=skipped))
        return out_dir / REPORT
    if not _is_finished(out_dir, evaluation, also):
        with reported(), folder.held(_writable(out_dir, arguments.cache_dir)):
            # Another process may have finished it while this one looked.
            if not _is_finished(out_dir, evaluation, also):
                return _make(arguments, command, whole, skipped, evaluation)
    print(f"{out_dir / REPORT} is up to date")
    with reported():
        print(text_summary(folder.stored_rows(out_dir), skipped=skipped))
    return out_dir / REPORT


def _make(
    arguments: Evaluate,
    command: str,
    whole: Suite,
    skipped: list[Skipped],
    evaluation: Evaluation,
) -> Path:
    """Runs what is not stored and writes the report, in a folder that is held."""
    out_dir, artifact = _out_dir(arguments), evaluation.artifact
    also = _more_baselines(arguments.also)
    before = folder.read_stamp(out_dir)
    if before is not None:
        if before.suite != arguments.suite:
            raise InputError(
                f"{out_dir} holds an evaluation on the suite {before.suite}: choose "
                f"another folder, as --out-dir {out_dir / arguments.suite}"
            )
        if before.identity == evaluation.identity:
            also = tuple(name for name in MORE if name in {*also, *before.also})
        reason = folder.why_not(out_dir, before, evaluation.identity)
        if reason and before.sha256:
            print(f"evaluated anew: {reason}", file=sys.stderr)
    stamp = folder.Stamp(arguments.suite, evaluation.identity, also)
    if before is None or before.identity != stamp.identity:
        # The folder is this suite's from now on. A finished report stays so while
        # optimizers are added.
        folder.write_stamp(out_dir, stamp)
    training_rows = _training_rows(arguments.artifact, artifact)
    warning = _mismatch(artifact, whole, skipped)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    tasks = {c.name: for_learned(c.task, artifact) for c in evaluation.suite.cells}
    stuck = small_steps_warning(artifact.optimizer, tasks)
    if stuck:
        print(f"warning: {stuck}", file=sys.stderr)
    for cell, reason in skipped:
        print(f"skipped: {cell}: {reason}", file=sys.stderr)
    begin = time.monotonic()
    rows, tunings = evaluate_suite(
        artifact,
        evaluation.suite,
        arguments.cache_dir,
        evaluation.seeds,
        report=lambda line: print(line, flush=True),
        stream=arguments.stream,
        also=also,
        parts=None if evaluation.unidentified else _parts(out_dir, evaluation),
    )
    evaluation.check()
    took = {"the last start took": f"{time.monotonic() - begin:.0f} s"}
    about = {"command": command} | describe_machine() | took
    if warning:
        about["warning"] = warning
    if stuck:
        about["small steps"] = stuck
    with unwinding():
        write_rows(out_dir / ROWS, rows)
        write_report(
            out_dir / REPORT,
            f"A learned optimizer on the {arguments.suite} suite",
            rows,
            tunings,
            training_rows,
            {"artifact": dict(artifact.provenance), "identity": evaluation.identity},
            about | _origin(out_dir / ROWS, rows, evaluation),
            missing_runs(rows, expected_runs(evaluation.suite, also=also)),
            skipped,
            {cell.name: cell.note for cell in evaluation.suite.cells if cell.note},
        )
        write_bytes(out_dir / CURVES, png(plot_curves(rows)))
        if not evaluation.unidentified:
            stamp = dataclasses.replace(stamp, sha256=folder.sums(out_dir))
            folder.write_stamp(out_dir, stamp)
    print(text_summary(rows, skipped=skipped))
    print(f"report: {out_dir / REPORT}")
    return out_dir / REPORT


def _origin(
    path: Path, rows: Sequence[EvalRow], evaluation: Evaluation
) -> dict[str, str]:
    """Returns which rows a report holds, and what they depend on."""
    return {
        "reported seeds": ", ".join(map(str, evaluation.seeds)),
        "optimizers": ", ".join(dict.fromkeys(row.optimizer for row in rows)),
        "rows": f"{len(rows)} in {path.name}, sha256 {digests.of_file(path)}",
        "identity": identity.digest(evaluation.identity),
    }


def _load(arguments: Evaluate) -> tuple[Suite, list[Skipped], Evaluation]:
    """Returns the whole suite, the cells that cannot run here, and the evaluation."""
    whole = find_suite(arguments.suite)
    with reported():
        artifact = Artifact.load(arguments.artifact)
        suite, skipped = runnable(whole, artifact)
        if not suite.cells:
            cell, reason = skipped[0]
            raise InputError(f"no cell of {whole.name} can run here: {cell}: {reason}")
        names = tuple(cell for cell, _ in skipped)
        evaluation = Evaluation(suite, artifact, SEEDS, names, arguments.stream)
        if (reason := evaluation.unidentified) is not None:
            print(f"warning: nothing is kept for later: {reason}", file=sys.stderr)
        return whole, skipped, evaluation


def _is_finished(out_dir: Path, evaluation: Evaluation, also: Sequence[str]) -> bool:
    """Whether the folder holds all of this evaluation, with these baselines."""
    stamp = folder.read_stamp(out_dir)
    if stamp is None or evaluation.unidentified or not {*also} <= {*stamp.also}:
        return False
    return folder.why_not(out_dir, stamp, evaluation.identity) is None


def _parts(out_dir: Path, evaluation: Evaluation) -> Parts:
    return Parts(out_dir / folder.JOBS, evaluation)


def _out_dir(arguments: Evaluate) -> Path:
    return arguments.out_dir or arguments.artifact.absolute().parent


def run_part(arguments: Evaluate) -> None:
    """Runs one job of a fleet's evaluation and stores its rows.

    Raises:
        InputError: if no cell that can run here has this optimizer.
    """
    _, _, evaluation = _load(arguments)
    suite = evaluation.suite
    parts = [f"{cell.name}/{name}" for cell, name in suite_jobs(suite, tuple(MORE))]
    if arguments.part not in parts:
        raise InputError(f"--part {arguments.part!r} must be one of {', '.join(parts)}")
    cell, _, name = arguments.part.rpartition("/")
    with reported():
        evaluate_suite(
            evaluation.artifact,
            suite,
            arguments.cache_dir,
            evaluation.seeds,
            report=lambda line: print(line, flush=True),
            stream=arguments.stream,
            also=tuple(MORE),
            parts=_parts(_out_dir(arguments), evaluation),
            only=(cell, name),
        )


def _run_fleet(
    arguments: Evaluate, evaluation: Evaluation, also: Sequence[str]
) -> None:
    """Runs each optimizer of each cell as a job, and then one that writes the report.

    The report is made where the jobs ran: what they stored depends on the backend and
    the versions there.

    Raises:
        SystemExit: with the fleet's exit code, if some jobs are not done.
    """
    assert arguments.fleet is not None
    with reported():
        out_dir = _writable(_out_dir(arguments).absolute(), arguments.cache_dir)
    command = [
        *("experiments.evaluate", "--suite", arguments.suite),
        *("--artifact", str(arguments.artifact.absolute())),
        *("--out-dir", str(out_dir)),
        *("--cache-dir", str(arguments.cache_dir.absolute())),
        *(["--stream"] if arguments.stream else []),
        *([] if arguments.compilation_cache else ["--no-compilation-cache"]),
    ]
    names = suite_jobs(evaluation.suite, also)
    jobs = []
    for cell, name in names:
        part = f"{cell.name}/{name}"
        jobs.append(Job(file_name(part), (*command, "--part", part)))
    report = Job("report", (*command, *(["--also", *also] if also else [])))
    # Of this artifact and data: jobs of others are not taken for done.
    calls = out_dir / "fleet" / identity.digest(evaluation.identity)[:16]
    (calls / "results" / f"{report.name}.json").unlink(missing_ok=True)
    # First the tuning that is transferred to other cells, if one is.
    first = [jobs[:1]] if any(name == MU_ADAM for _, name in names) else []
    for some in (*first, jobs, [report]):
        place = (arguments.fleet, arguments.workers, arguments.slurm)
        if code := run_jobs(some, calls, *place):
            raise SystemExit(code)


def _mismatch(
    artifact: Artifact, suite: Suite, skipped: Sequence[Skipped] = ()
) -> str | None:
    """Returns a warning if the artifact was not meta-trained on the `trained` cell."""
    trained = suite.trained
    if trained is None:
        return None
    if trained.name in {cell for cell, _ in skipped}:
        return (
            f"the trained cell {trained.name!r} of this suite cannot run here: no "
            "learning rate is transferred, and no cell is compared with it"
        )
    config = artifact.provenance.get("config")
    task = config.get("task") if isinstance(config, dict) else None
    if task == encode(trained.task):
        return None
    return (
        f"the cell {trained.name!r} of this suite is not where the artifact was "
        f"meta-trained (its provenance says task = {json.dumps(task)}): read 'trained' "
        "as 'reference'"
    )


def _more_baselines(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the requested baselines in the order of tables."""
    for name in names:
        if name not in MORE:
            known = ", ".join(MORE)
            raise InputError(f"unknown baseline --also {name!r}: known are {known}")
    return tuple(name for name in MORE if name in names)


def _writable(out_dir: Path, cache_dir: Path) -> Path:
    """Refuses unwritable folders before an evaluation of minutes; returns the first."""
    for place in (out_dir, cache_dir):
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    for name in (ROWS, REPORT, CURVES, folder.STAMP):
        if (out_dir / name).is_dir():
            raise InputError(f"{out_dir / name} is a folder; move it away")
    return out_dir


def _training_rows(path: Path, artifact: Artifact) -> list[dict[str, Any]]:
    """Returns the metrics of the run that made an artifact, if they lie beside it."""
    run = path.absolute().parent
    names = (run_directory.METRICS, run_directory.VALIDATION)
    if not any((run / name).exists() for name in names):
        return []
    if not _made_by(run, artifact):
        print(
            f"warning: {run} is not the run that made {path}: its curve is left out",
            file=sys.stderr,
        )
        return []
    return [row for name in names for row in run_directory.read_rows(run / name)]


def _made_by(run: Path, artifact: Artifact) -> bool:
    """Whether a run's configuration and validations are those of the provenance."""
    about = artifact.provenance
    config = {n: x for n, x in run_directory.read_config(run).items() if n != "run"}
    stored = about.get("config")
    if not isinstance(stored, dict):
        return False
    stored = run_directory.in_form_of_today(stored)
    # A run can be made longer afterwards.
    names = {n for n in stored | config if stored.get(n) != config.get(n)}
    rows = run_directory.read_rows(run / run_directory.VALIDATION)
    best = [row for row in rows if row["step"] == about.get("best_step")]
    # Checkpoints hold the loss in float32.
    losses = {
        np.float32(row.get(f"{about.get('validation_figure')}_loss")) for row in best
    }
    return names <= {"num_steps"} and about.get("validation_loss") in losses


def main() -> None:
    """Command line."""
    program = "python -m experiments.evaluate"
    arguments = command_line.parse(Evaluate, program, sys.argv[1:])
    if "--also" in sys.argv[1:] and not arguments.also:
        raise InputError(f"--also needs a name: {', '.join(MORE)}")
    check_folder("--artifact", arguments.artifact)
    compilation_cache.use(arguments.compilation_cache)
    if arguments.part is not None:
        return run_part(arguments)
    evaluate(arguments, f"{program} {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    command_line.run(main)
