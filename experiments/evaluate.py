"""Evaluation of an artifact: `python -m experiments.evaluate --artifact DIR`.

Writes `rows.jsonl` (every run), `report.html` (one static file) and `curves.png`, and
prints the table. Baselines are tuned per cell and cached; a finished evaluation of the
same artifact and suite is not repeated. Cells that cannot run on this machine, mostly
for lack of data, are skipped, which every table says.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configuration.fields import configuration, later
from configuration.files import SUMS, write_bytes, write_text
from evaluation.plan import (
    MORE,
    MU_ADAM,
    SEEDS,
    Skipped,
    expected_runs,
    runnable,
)
from evaluation.report.html import write_report
from evaluation.report.plots import plot_curves, png
from evaluation.report.tables import text_summary
from evaluation.results import (
    SCHEMA_VERSION,
    EvalRow,
    missing_runs,
    read_rows,
    write_rows,
)
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
from tasks import description
from tasks.suites import Suite

ROWS, REPORT, CURVES = "rows.jsonl", "report.html", "curves.png"
STAMP = "evaluation.json"


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
            is damaged or the folder cannot be written.
    """
    whole, also = find_suite(arguments.suite), _more_baselines(arguments.also)
    artifact, suite, skipped, stamp = _load(arguments, whole)
    out_dir = _out_dir(arguments)
    report = out_dir / REPORT
    rows = _finished(out_dir, stamp, list(expected_runs(suite, also=also)))
    if rows is not None:
        print(f"{report} is up to date")
        print(text_summary(rows, skipped=skipped))
        return report
    with reported():
        _check_writable(report, arguments.cache_dir)
    training_rows = _training_rows(arguments.artifact)
    (out_dir / STAMP).unlink(missing_ok=True)
    warning = _mismatch(artifact, whole, skipped)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    for cell, reason in skipped:
        print(f"skipped: {cell}: {reason}", file=sys.stderr)
    begin = time.monotonic()
    rows, tunings = evaluate_suite(
        artifact,
        suite,
        arguments.cache_dir,
        report=lambda line: print(line, flush=True),
        stream=arguments.stream,
        also=also,
        parts=_run_fleet(arguments, suite, stamp) if arguments.fleet else None,
    )
    environment = (
        {"command": command}
        | describe_machine()
        | {
            "evaluation took": f"{time.monotonic() - begin:.0f} s",
            "reported seeds": ", ".join(map(str, SEEDS)),
        }
    )
    if arguments.fleet:
        environment["runs on"] = (
            f"a fleet ({arguments.fleet}), collected by the machine"
        )
    if warning:
        environment["warning"] = warning
    with reported(), unwinding():
        write_rows(out_dir / ROWS, rows)
        write_report(
            report,
            f"A learned optimizer on the {arguments.suite} suite",
            rows,
            tunings,
            training_rows,
            {"artifact": dict(artifact.provenance), "cells": encode(suite.cells)},
            environment,
            missing_runs(rows, expected_runs(suite, also=also)),
            skipped,
            {cell.name: cell.note for cell in suite.cells if cell.note},
        )
        write_bytes(out_dir / CURVES, png(plot_curves(rows)))
        write_text(out_dir / STAMP, json.dumps(stamp) + "\n")
    print(text_summary(rows, skipped=skipped))
    print(f"report: {report}")
    return report


def _load(
    arguments: Evaluate, whole: Suite
) -> tuple[Artifact, Suite, list[Skipped], dict[str, Any]]:
    """Returns the artifact, the cells that can run here, the others, and the stamp."""
    with reported():
        artifact = Artifact.load(arguments.artifact)
        suite, skipped = runnable(whole, artifact)
        if not suite.cells:
            cell, reason = skipped[0]
            raise InputError(f"no cell of {whole.name} can run here: {cell}: {reason}")
        return artifact, suite, skipped, _stamp(arguments.artifact, suite)


def _out_dir(arguments: Evaluate) -> Path:
    return arguments.out_dir or arguments.artifact.absolute().parent


def _fleet_folder(arguments: Evaluate, stamp: dict[str, Any]) -> Path:
    """Returns the folder of the jobs of one evaluation: of this artifact and suite."""
    digest = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()
    return _out_dir(arguments) / "fleet" / digest[:16]


def run_part(arguments: Evaluate) -> None:
    """Runs one job of a fleet's evaluation and stores its rows.

    Raises:
        InputError: if no cell that can run here has this optimizer.
    """
    artifact, suite, _, stamp = _load(arguments, find_suite(arguments.suite))
    parts = [f"{cell.name}/{name}" for cell, name in suite_jobs(suite, tuple(MORE))]
    if arguments.part not in parts:
        raise InputError(f"--part {arguments.part!r} must be one of {', '.join(parts)}")
    cell, _, name = arguments.part.rpartition("/")
    with reported():
        evaluate_suite(
            artifact,
            suite,
            arguments.cache_dir,
            report=lambda line: print(line, flush=True),
            stream=arguments.stream,
            also=tuple(MORE),
            parts=Parts(_fleet_folder(arguments, stamp) / "parts", stamp),
            only=(cell, name),
        )


def _run_fleet(arguments: Evaluate, suite: Suite, stamp: dict[str, Any]) -> Parts:
    """Runs each optimizer of each cell as a job, and returns what they stored.

    Raises:
        SystemExit: with the fleet's exit code, if some jobs are not done.
    """
    assert arguments.fleet is not None
    names = suite_jobs(suite, _more_baselines(arguments.also))
    command = [
        *("experiments.evaluate", "--suite", arguments.suite),
        *("--artifact", str(arguments.artifact.absolute())),
        *("--out-dir", str(_out_dir(arguments).absolute())),
        *("--cache-dir", str(arguments.cache_dir.absolute())),
        *(["--stream"] if arguments.stream else []),
        *([] if arguments.compilation_cache else ["--no-compilation-cache"]),
    ]
    jobs = []
    for cell, name in names:
        part = f"{cell.name}/{name}"
        jobs.append(Job(file_name(part), (*command, "--part", part)))
    folder = _fleet_folder(arguments, stamp)
    # First the tuning that is transferred to other cells, if one is.
    transfers = any(name == MU_ADAM for _, name in names)
    for some in (jobs[:1], jobs) if transfers else (jobs,):
        place = (arguments.fleet, arguments.workers, arguments.slurm)
        if code := run_jobs(some, folder, *place):
            raise SystemExit(code)
    return Parts(folder / "parts", stamp)


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


def _stamp(artifact: Path, suite: Suite) -> dict[str, Any]:
    """Returns the identity of an evaluation: equal stamps need no repetition.

    It covers the cells that can run and the contents of their data, so that data that
    appears later is used.
    """
    about = {
        "cells": encode(suite.cells),
        "data": [description.fingerprint(cell.task) for cell in suite.cells],
        "aggregate": suite.aggregate,
    }
    text = json.dumps(about, sort_keys=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "artifact": hashlib.sha256((artifact / SUMS).read_bytes()).hexdigest(),
        "suite": hashlib.sha256(text.encode()).hexdigest(),
        "seeds": list(SEEDS),
    }


def _more_baselines(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the requested baselines in the order of tables."""
    for name in names:
        if name not in MORE:
            known = ", ".join(MORE)
            raise InputError(f"unknown baseline --also {name!r}: known are {known}")
    return tuple(name for name in MORE if name in names)


def _check_writable(report: Path, cache_dir: Path) -> None:
    """Refuses unwritable folders before an evaluation of minutes."""
    for folder in (report.parent, cache_dir):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    if report.is_dir():
        raise InputError(f"{report} is a folder; move it away")


def _finished(
    out_dir: Path, stamp: dict[str, Any], expected: list[tuple[str, str, int]]
) -> list[EvalRow] | None:
    """Returns the rows of a finished evaluation with this stamp, if there is one."""
    try:
        if json.loads((out_dir / STAMP).read_text()) != stamp:
            return None
        rows = read_rows(out_dir / ROWS)
    except (OSError, ValueError, RecursionError):
        return None
    if missing_runs(rows, expected) or not (out_dir / REPORT).is_file():
        return None
    return rows


def _training_rows(artifact: Path) -> list[dict[str, Any]]:
    """Returns the metrics of the run directory that holds the artifact, if one does."""
    folder = artifact.absolute().parent
    names = (run_directory.METRICS, run_directory.VALIDATION)
    return [row for name in names for row in run_directory.read_rows(folder / name)]


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
