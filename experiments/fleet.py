"""Runs many jobs: `python -m experiments.fleet JOBS.json [--workers N]`.

Jobs are independent commands (see `experiments.fleets.job_file`), which workers share
through a folder (see `experiments.fleets.job_folder`): the same command on several
machines that see the folder makes one larger fleet, and the same command again runs
what is missing. Exit code 0 means that every job is done, 1 that some are not; the
report names them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from configuration.fields import configuration
from evaluation.report.text_table import text_table
from experiments import command_line
from experiments.command_line import INTERRUPTED, InputError
from experiments.fleets.fleet_worker import Children, SlurmWorker, start, worker_command
from experiments.fleets.job_file import Job, read_jobs
from experiments.fleets.job_folder import OPEN, JobFolder
from experiments.presets.checks import require_positive

INCOMPLETE = 1
"""Exit code if some jobs are not done."""

PROGRAM = "python -m experiments.fleet"

_FRUITLESS = 2
"""Rounds of workers in a row that may be killed without finishing a job."""


@configuration
class Slurm:
    """Resources of a worker; any of these fields sends the workers to SLURM."""

    partition: str | None = None
    """Partition to run in."""
    account: str | None = None
    """Account to charge."""
    minutes: int | None = None
    """Time limit; a worker whose time is up saves its job and is queued again."""
    cpus: int | None = None
    """CPU cores."""
    gpus: int | None = None
    """GPUs."""
    memory_gb: int | None = None
    """Memory, GB."""

    def __post_init__(self) -> None:
        require_positive(self, "minutes", "cpus", "memory_gb")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"gpus = {self.gpus} must not be negative")

    @property
    def parameters(self) -> dict[str, Any]:
        """The fields that are set, by submitit's names."""
        names = {
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus,
            "mem_gb": self.memory_gb,
        }
        return {name: value for name, value in names.items() if value is not None}


@configuration
class FleetOptions:
    """Runs the jobs of a file that are not done."""

    jobs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="JOBS.json")]
    """The job file."""
    directory: Path | None = None
    """The fleet's folder; by default runs/fleet/JOBS."""
    workers: int = 1
    """Jobs that run at the same time, each as a process."""
    status: bool = False
    """Only print the state of every job."""
    retry_failed: bool = False
    """Run failed jobs again."""
    slurm: Slurm = Slurm()
    """Start the workers as jobs of SLURM; needs submitit."""

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 1000:
            raise ValueError(f"workers = {self.workers} must lie in [1, 1000]")

    @property
    def folder(self) -> JobFolder:
        """The fleet's folder."""
        return JobFolder(self.directory or Path("runs/fleet") / self.jobs.stem)


def run(options: FleetOptions) -> int:
    """Runs the jobs that are not done, reports, and returns the exit code.

    Raises:
        InputError: if the job file or the folder is wrong.
    """
    jobs, folder = read_jobs(options.jobs), options.folder
    folder.check(jobs)
    if options.status:
        print("\n".join(status_table(folder, jobs)))
        return 0
    if options.retry_failed:
        for job in jobs:
            folder.forget_failure(job)
    if options.slurm.parameters:
        return _submit(options, folder, jobs)
    with Children().listening() as children:
        _run_here(options, folder, jobs, children)
    print(summary(folder, jobs))
    if children.interrupted is not None:
        return INTERRUPTED
    done = all(folder.state(job) == "done" for job in jobs)
    return 0 if done else INCOMPLETE


def _run_here(
    options: FleetOptions, folder: JobFolder, jobs: Sequence[Job], children: Children
) -> None:
    """Starts workers on this machine, and again while killed ones leave jobs."""
    left, fruitless = len(_open(folder, jobs)), 0
    while left and fruitless < _FRUITLESS and children.interrupted is None:
        line = worker_command(options.jobs, folder.path)
        workers = [start(line) for _ in range(min(options.workers, left))]
        for worker in workers:
            children.add(worker)
        for worker in workers:
            code = worker.wait()
            if code and children.interrupted is None:
                print(f"a worker ended with exit code {code}", file=sys.stderr)
        before, left = left, len(_open(folder, jobs))
        fruitless = 0 if left < before else fruitless + 1
        if fruitless and not any((worker.returncode or 0) < 0 for worker in workers):
            return


def _submit(options: FleetOptions, folder: JobFolder, jobs: Sequence[Job]) -> int:
    try:
        import submitit  # pyright: ignore
    except ImportError:
        raise InputError(
            "--slurm needs the package submitit, which is not installed: pip install "
            "submitit"
        ) from None
    number = min(options.workers, len(_open(folder, jobs)))
    if not number:
        print(summary(folder, jobs))
        return 0
    logs = folder.path.absolute() / "slurm"
    executor = submitit.AutoExecutor(folder=logs, cluster="slurm")
    executor.update_parameters(name=options.jobs.stem, **options.slurm.parameters)
    places = str(options.jobs.absolute()), str(folder.path.absolute())
    with executor.batch():
        submitted = [executor.submit(SlurmWorker(*places)) for _ in range(number)]
    names = ", ".join(job.job_id for job in submitted)
    print(f"submitted {number} workers: SLURM jobs {names}")
    print(f"{PROGRAM} {options.jobs} --directory {folder.path} --status shows them")
    return 0


def _open(folder: JobFolder, jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if folder.state(job) in OPEN]


def status_table(folder: JobFolder, jobs: Sequence[Job]) -> list[str]:
    """Returns a table of every job's state, and the summary."""
    lines = [("job", "state", "exit code", "seconds", "host", "log")]
    for job in jobs:
        state, result = folder.state(job), folder.result(job)
        log = str(folder.log(job)) if folder.log(job).exists() else "–"
        if result is not None:
            code, seconds = str(result.exit_code), f"{result.seconds:.0f}"
            host = result.host
        else:
            owner = folder.owner(job) if state in ("running", "stale") else {}
            code, seconds, host = "–", "–", str(owner.get("host", "–"))
        lines.append((job.name, state, code, seconds, host, log))
    return [*text_table(lines, grouped=False), summary(folder, jobs)]


def summary(folder: JobFolder, jobs: Sequence[Job]) -> str:
    """Returns how many jobs are done, and the names of the others by state."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        names.setdefault(folder.state(job), []).append(job.name)
    done = len(names.pop("done", ()))
    missing = [f"{state}: {', '.join(of)}" for state, of in sorted(names.items())]
    return "; ".join([f"{done} of {len(jobs)} done", *missing])


def main() -> None:
    """Command line."""
    options = command_line.parse(FleetOptions, PROGRAM, sys.argv[1:])
    raise SystemExit(run(options))


if __name__ == "__main__":
    command_line.run(main)
