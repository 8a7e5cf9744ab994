"""Runs the jobs of a file: `python -m experiments.fleet JOBS.json [--workers N]`.

Jobs are independent commands (see `experiments.fleets.job_file`). The same command
again runs those that failed or are missing. Exit code 0 means that every job is done, 1
that some are not; the last line names them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from configuration.fields import configuration
from experiments import command_line
from experiments.fleets.job_file import read_jobs
from experiments.fleets.submission import Cluster, calls_of, check, run_jobs, summary


@configuration
class FleetOptions:
    """Runs the jobs of a file that are not done."""

    jobs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="JOBS.json")]
    """The job file."""
    directory: Path | None = None
    """The fleet's folder; by default runs/fleet/JOBS."""
    cluster: Cluster = "local"
    """Where jobs run: here, on SLURM, or one after another without submitit."""
    workers: int = 1
    """Jobs that run at the same time."""
    slurm: tuple[str, ...] = ()
    """NAME=VALUE of a job on SLURM, by submitit's names: timeout_min=240 partition=gpu
    gpus_per_node=1 cpus_per_task=8 mem_gb=32 account=lab."""
    status: bool = False
    """Only print which jobs are done, failed, running and missing."""

    def __post_init__(self) -> None:
        check(self.cluster, self.workers, self.slurm)


def run(options: FleetOptions) -> int:
    """Runs the jobs that are not done, reports, and returns the exit code.

    Raises:
        InputError: if the job file or an option is wrong.
    """
    jobs = read_jobs(options.jobs)
    folder = options.directory or Path("runs/fleet") / options.jobs.stem
    if options.status:
        print(summary(calls_of(jobs, folder)))
        return 0
    return run_jobs(jobs, folder, options.cluster, options.workers, options.slurm)


def main() -> None:
    """Command line."""
    program = "python -m experiments.fleet"
    options = command_line.parse(FleetOptions, program, sys.argv[1:])
    raise SystemExit(run(options))


if __name__ == "__main__":
    command_line.run(main)
