"""A worker of a fleet, which runs one job after another, each as a process.

`python -m experiments.fleet` starts workers; by hand, one is started by
`python -m experiments.fleets.fleet_worker JOBS.json DIRECTORY`. A job that crashes does
not harm its worker. When a worker dies, the kernel sends SIGTERM to its job, on which
training saves and ends, and another worker takes the job over.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.command_line import INTERRUPTED, InputError
from experiments.fleets.job_file import Job, read_jobs
from experiments.fleets.job_folder import Claim, JobFolder

_BEGIN = """
import ctypes, os, signal, sys
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
set_deathsig = getattr(ctypes.CDLL(None), "prctl", None)
if set_deathsig is not None:
    set_deathsig(1, int(signal.SIGTERM))
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
sys.exit(143)  # it died before we asked
"""
"""Program that becomes the command. On Linux it first asks for SIGTERM when its parent
dies (PR_SET_PDEATHSIG is 1); elsewhere it outlives its parent. A program rather than a
`preexec_fn`, since code between fork and exec may hang where there are threads."""

_PAUSE = 0.1
"""Seconds before the second look for jobs: a look at a state locks for an instant."""

Command = Callable[[Job], Sequence[str]]


def python_module(job: Job) -> list[str]:
    """Returns the command line of a job."""
    return [sys.executable, "-m", *job.command]


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts a process, by the path of its program, that ends when we do.

    It has its own session, so that Ctrl-C reaches it once, through us. It ignores
    SIGUSR2, by which SLURM tells all processes at once that their time is up.
    """
    return subprocess.Popen[bytes](
        [sys.executable, "-I", "-S", "-c", _BEGIN, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )


class Children:
    """Processes to which signals are passed on."""

    def __init__(self) -> None:
        self.interrupted: int | None = None
        """The last signal that came."""
        self._processes: list[subprocess.Popen[bytes]] = []

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """Passes signals on to a process, including one that came before."""
        self._processes.append(process)
        if self.interrupted is not None:
            process.send_signal(self.interrupted)

    def receive(self, number: int, frame: Any = None) -> None:
        """Handles a signal."""
        del frame
        self.interrupted = number
        for process in self._processes:
            # Does nothing to a process that was waited for.
            process.send_signal(number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Children]:
        """Passes SIGINT and SIGTERM on while the block runs."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        old = {number: signal.signal(number, self.receive) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def work(
    folder: JobFolder,
    jobs: Sequence[Job],
    children: Children,
    command: Command = python_module,
) -> None:
    """Runs unclaimed jobs until none remain.

    `children` receives each job's process, and says when to stop; `command` returns the
    command line of a job.
    """
    tried: set[Job] = set()
    idle = 0
    while idle < 2 and children.interrupted is None:
        idle += 1
        for job in jobs:
            if children.interrupted is not None:
                return
            if job in tried or folder.result(job) is not None:
                continue
            if claim := folder.claim(job):
                idle = 0
                # An interrupted job waits for another start of the fleet.
                tried.add(job)
                with claim:
                    _run(folder, job, claim, children, command)
        if idle:
            time.sleep(_PAUSE)


def _run(
    folder: JobFolder, job: Job, claim: Claim, children: Children, command: Command
) -> None:
    line = list(command(job))
    with folder.log(job).open("ab") as log:
        text = f"--- {time.strftime('%F %T')} {platform.node()}: {shlex.join(line)}\n"
        log.write(text.encode())
        log.flush()
        if claim.before:
            host, pid = claim.before.get("host"), claim.before.get("pid")
            print(f"{job.name}: taken over from process {pid} of {host}", flush=True)
        begin = time.monotonic()
        process = start(
            line, stdout=log, stderr=subprocess.STDOUT, pass_fds=[claim.handle]
        )
        children.add(process)
        code = process.wait()
    seconds = time.monotonic() - begin
    if code == INTERRUPTED or (code != 0 and children.interrupted is not None):
        claim.give_back()
        print(f"{job.name}: interrupted; it continues at the next start", flush=True)
        return
    claim.finish(code, seconds)
    end = f"failed with exit code {code}, see {folder.log(job)}" if code else "done"
    print(f"{job.name}: {end} ({seconds:.0f} s)", flush=True)


class SlurmWorker:
    """A worker that submitit starts in a job of SLURM.

    When its time is up or it is preempted, submitit calls `checkpoint` and queues the
    result.
    """

    def __init__(self, jobs: str, directory: str) -> None:
        """Args: the job file; the fleet's folder."""
        self.jobs, self.directory = jobs, directory

    def __call__(self) -> int:
        """Runs a worker, and returns its exit code."""
        self._process = start(worker_command(self.jobs, self.directory))
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Lets the job save and end, and returns the worker that continues."""
        import submitit.helpers  # pyright: ignore

        # Not `wait`: this handler interrupts a call that holds its lock.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._process.pid, signal.SIGTERM)
            while os.waitpid(self._process.pid, os.WNOHANG) == (0, 0):
                time.sleep(_PAUSE)
        again = SlurmWorker(self.jobs, self.directory)
        return submitit.helpers.DelayedSubmission(again)


def worker_command(jobs: str | Path, directory: str | Path) -> list[str]:
    """Returns the command line of a worker."""
    module = "experiments.fleets.fleet_worker"
    return [sys.executable, "-m", module, str(jobs), str(directory)]


def main() -> None:
    """Command line."""
    if len(sys.argv) != 3:
        raise InputError("usage: experiments.fleets.fleet_worker JOBS.json DIRECTORY")
    jobs, folder = read_jobs(Path(sys.argv[1])), JobFolder(Path(sys.argv[2]))
    folder.check(jobs)
    with Children().listening() as children:
        work(folder, jobs, children)
    if children.interrupted is not None:
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    command_line.run(main)
