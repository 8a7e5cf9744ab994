"""Runs the jobs that are not done: on this machine, on SLURM, or one after another."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress

from configuration.files import is_ours
from experiments.command_line import FAILED, INTERRUPTED, InputError, take_option
from experiments.fleets.call import Call
from experiments.fleets.job_file import Job
from experiments.signals import handled

Cluster = Literal["local", "slurm", "inline"]

_LARGEST_ARRAY = 1000  # SLURM's MaxArraySize is 1001 where nobody raised it
_YEAR = 60 * 24 * 365  # minutes: submitit would end a local job after 2
_SHARED = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")


def check(cluster: Cluster | None, workers: int, slurm: tuple[str, ...]) -> None:
    """Raises `ValueError` if the options of a fleet are wrong or do not fit."""
    if not 1 <= workers <= 1000 or (cluster is None and workers != 1):
        most = 1 if cluster is None else 1000
        raise ValueError(f"workers = {workers} must lie in [1, {most}] on {cluster!r}")
    if slurm and cluster != "slurm":
        raise ValueError(f"slurm = {slurm} is only for a fleet on 'slurm'")
    for word in slurm:
        if not all(word.partition("=")):
            raise ValueError(f"slurm = {word!r} must be NAME=VALUE, as 'mem_gb=8'")
    if cluster == "slurm" and not any(w.startswith("timeout_min=") for w in slurm):
        raise ValueError(f"slurm = {slurm} must hold timeout_min=MINUTES of a job")


def calls_of(jobs: Sequence[Job], folder: Path) -> list[Call]:
    """Returns the calls of jobs, whose records and logs are in the fleet's folder.

    Raises:
        OSError: naming a link there.
    """
    calls = []
    for job in jobs:
        flag = "--run.directory" if job.command[0].endswith(".train") else "--out-dir"
        result, _ = take_option(job.command, flag)
        path = Path(result).absolute() if result else None
        call = Call(job.name, job.command, job.sha256, folder.absolute(), path)
        call.check()
        calls.append(call)
    return calls


def summary(calls: Sequence[Call]) -> str:
    """Returns how many jobs are done, and the names of the others."""
    names: dict[str, list[str]] = {}
    for call in calls:
        names.setdefault(call.state(), []).append(call.name)
    done = len(names.pop("done", ()))
    others = [f"{state}: {', '.join(of)}" for state, of in sorted(names.items())]
    return "; ".join([f"{done} of {len(calls)} done", *others])


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    cluster: Cluster,
    workers: int,
    slurm: Sequence[str],
) -> int:
    """Runs the jobs that are not done, prints a summary, and returns the exit code.

    After SIGINT, SIGTERM or SIGHUP jobs on SLURM go on, and others save and end.

    Raises:
        InputError: if submitit or SLURM is missing, or SLURM refuses the jobs.
    """
    calls, stopped = calls_of(jobs, folder), []
    left = [call for call in calls if call.exit_code() != 0]
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    with (
        handled(lambda number, frame: stopped.append(number)),
        Progress(console=console, disable=not sys.stderr.isatty()) as progress,
    ):
        bar = progress.add_task(folder.name, total=len(calls))
        progress.advance(bar, len(calls) - len(left))
        ended = _inline(left, stopped)
        if left and cluster != "inline":
            submit = _submitter(folder, cluster, workers, slurm)
            ended = _submitted(left, submit, cluster, workers, stopped)
        for call in ended:
            progress.advance(bar)
            console.print(f"{call.name}: {call.state()}, see {call.log}")
        if stopped and cluster == "slurm":
            console.print("jobs stay in SLURM's queue; scancel ends them")
    print(summary(calls))
    if stopped:
        return INTERRUPTED
    return FAILED if any(call.exit_code() != 0 for call in calls) else 0


def _inline(calls: Sequence[Call], stopped: list[int]) -> Iterator[Call]:
    for call in calls:
        if not stopped:
            call()
            stopped += [signal.SIGTERM] * call.stopping
            yield call


def _submitted(
    waiting: Sequence[Call],
    submit: Callable[[Sequence[Call]], list[Any]],
    cluster: Cluster,
    workers: int,
    stopped: list[int],
) -> Iterator[Call]:
    """Submits calls and yields each when it has ended."""
    local, told = cluster == "local", 0
    running: list[tuple[Call, Any]] = []
    while (waiting or running) and (local or not stopped):
        if len(stopped) > told:
            waiting, told = (), len(stopped)
            for _, job in running:
                os.kill(int(job.job_id), signal.SIGTERM)
        room = workers - len(running) if local else 0 if running else _LARGEST_ARRAY
        batch, waiting = waiting[:room], waiting[room:]
        running += zip(batch, submit(batch), strict=True) if batch else ()
        time.sleep(0.1 if local else 1.0)
        looks = [(c, job, job.done() and not c.is_running()) for c, job in running]
        running = [(call, job) for call, job, ended in looks if not ended]
        yield from (call for call, _, ended in looks if ended)


def _submitter(
    folder: Path, cluster: Cluster, workers: int, slurm: Sequence[str]
) -> Callable[[Sequence[Call]], list[Any]]:
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError:
        raise InputError(
            f"a fleet on {cluster!r} needs the package submitit: "
            "pip install submitit (or choose 'inline')"
        ) from None
    pickles = folder.absolute() / "submitit"
    pickles.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, unsafe in ((pickles, 0o077), (pickles.parent, 0o002)):
        if not is_ours(path, unsafe):
            found = path.lstat()
            raise InputError(
                f"{path} has mode {found.st_mode:o} and owner {found.st_uid}: submitit "
                "reads pickles below it, so it must be a folder of yours that others "
                f"cannot write to: move it away, or chmod {0o755 & ~unsafe:o} it"
            )
    options: dict[str, Any] = {"timeout_min": _YEAR, "slurm_array_parallelism": workers}
    for word in slurm:
        name, _, value = word.partition("=")
        options[name if name in _SHARED else f"slurm_{name}"] = (
            int(value) if value.isdigit() else value
        )
    try:
        executor = submitit.AutoExecutor(pickles, cluster=cluster)
        executor.update_parameters(name=folder.name, stderr_to_stdout=True, **options)
    except (RuntimeError, NameError, AssertionError, ValueError, TypeError) as error:
        raise InputError(f"a fleet on {cluster!r}: {error}") from None

    def submit(batch: Sequence[Call]) -> list[Any]:
        # A terminal's signals are ours alone: jobs hear of them as SIGTERM.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
        try:
            with executor.batch():
                return [executor.submit(call) for call in batch]
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError(f"SLURM refuses the jobs: {error}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return submit
