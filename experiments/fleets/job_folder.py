"""The folder of a fleet: which worker runs which job, and the results.

    claims/NAME         the worker that runs or ran the job; locked while it runs
    results/NAME.json   the result, written once and whole
    failed/NAME/1.json  results of failures that were run again
    logs/NAME.log       everything that the job printed

Any number of workers, on any machines that see the folder, share the jobs. A worker
takes the kernel's lock (`flock`) on a job's claim, looks for a result, and only then
begins. A lock ends with its processes, however they end: a claim that nobody holds and
that has no result is *stale*, and the next worker takes it over. The job's own process
inherits the lock, so a job that outlives its worker is not started a second time.
Claims are never deleted, or two workers could lock two files of the same name.

The file system must have locks that all machines see: local disks, NFS, Lustre mounted
with `flock`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from configuration import encoding
from configuration.files import write_text
from experiments.command_line import InputError
from experiments.fleets.job_file import Job

State = Literal["done", "failed", "running", "waiting", "stale", "damaged"]
OPEN: tuple[State, ...] = ("waiting", "stale", "damaged")
"""States of jobs that a worker may start."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a job."""

    name: str
    sha256: str
    """Digest of the job's command."""
    command: tuple[str, ...]
    exit_code: int
    """Exit code of the process; −N if signal N ended it."""
    seconds: float
    host: str
    log: str
    """Path of the log in the fleet's folder."""


class JobFolder:
    """A fleet's folder."""

    def __init__(self, path: Path) -> None:
        """Args: the folder, which the first claim creates."""
        self.path = path

    def check(self, jobs: Sequence[Job]) -> None:
        """Checks that stored results are those of these jobs.

        Raises:
            InputError: naming the job whose command has changed.
        """
        for job in jobs:
            self.result(job)

    def result(self, job: Job) -> Result | None:
        """Returns the job's result; None if it is missing or cannot be read.

        Raises:
            InputError: if it is the result of another command.
        """
        path = self._result(job)
        try:
            data = json.loads(path.read_text())
            result = encoding.decode(Result, data, str(path), {})
        except (OSError, ValueError, RecursionError):
            return None
        if result.name != job.name:
            return None
        if result.sha256 != job.sha256:
            raise InputError(
                f"job {job.name!r} has changed: {path} is the result of "
                f"{' '.join(result.command)!r}; rename the job, or move its "
                "result away"
            )
        return result

    def state(self, job: Job) -> State:
        """Returns where a job stands at the moment."""
        if ended := self._ended(job):
            return ended
        try:
            with self._claim(job).open("rb") as file:
                owned = bool(file.read(1))
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return "running"
        except FileNotFoundError:
            owned = False
        if self._result(job).exists():
            # Written since the first look, or damaged.
            return self._ended(job) or "damaged"
        return "stale" if owned else "waiting"

    def _ended(self, job: Job) -> Literal["done", "failed"] | None:
        result = self.result(job)
        return result and ("failed" if result.exit_code else "done")

    def claim(self, job: Job) -> Claim | None:
        """Takes a job, if it has no result and no worker runs it.

        Raises:
            InputError: if the file system has no locks, or the result is that of
                another command.
        """
        handle = self._lock(job)
        if handle is None:
            return None
        try:
            # Under the lock: its last holder may have finished a moment ago.
            if self.result(job) is None:
                return Claim(self, job, handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None

    def forget_failure(self, job: Job) -> bool:
        """Puts a failed job's result aside, so that it runs again."""
        if self._ended(job) != "failed" or not (handle := self._lock(job)):
            return False
        try:
            # Under the lock: another fleet may have been quicker.
            if self._ended(job) != "failed":
                return False
            folder = self.path / "failed" / job.name
            folder.mkdir(parents=True, exist_ok=True)
            number = 1 + len(list(folder.iterdir()))
            self._result(job).rename(folder / f"{number}.json")
            # Without an owner the job is waiting, not stale.
            os.ftruncate(handle, 0)
            return True
        finally:
            os.close(handle)

    def log(self, job: Job) -> Path:
        """Returns the file of a job's output."""
        return self.path / "logs" / f"{job.name}.log"

    def owner(self, job: Job) -> dict[str, Any]:
        """Returns the last owner of the job's claim; empty if there is none."""
        try:
            owner = json.loads(self._claim(job).read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _lock(self, job: Job) -> int | None:
        """Returns the locked claim's file descriptor; None if it is locked already."""
        path = self._claim(job)
        for folder in (path.parent, self._result(job).parent, self.log(job).parent):
            folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            os.close(handle)
            raise InputError(
                f"{path} cannot be locked ({error.strerror}): choose a --directory on "
                "a file system with locks"
            ) from None
        return handle

    def _claim(self, job: Job) -> Path:
        return self.path / "claims" / job.name

    def _result(self, job: Job) -> Path:
        return self.path / "results" / f"{job.name}.json"


class Claim:
    """A job that is ours until this is closed, or the process ends."""

    def __init__(self, folder: JobFolder, job: Job, handle: int) -> None:
        """Args: the folder, the job, the file descriptor of the locked claim."""
        self.handle = handle
        """File descriptor for the job's process to inherit."""
        self._folder, self._job = folder, job
        self.before = folder.owner(job)
        """Owner before us that left no result; empty if there was none."""
        owner = {
            "host": platform.node(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "sha256": job.sha256,
        }
        self._write(json.dumps(owner))

    def finish(self, exit_code: int, seconds: float) -> None:
        """Writes the job's result."""
        job, folder = self._job, self._folder
        result = Result(
            name=job.name,
            sha256=job.sha256,
            command=job.command,
            exit_code=exit_code,
            seconds=round(seconds, 3),
            host=platform.node(),
            log=str(folder.log(job).relative_to(folder.path)),
        )
        text = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
        write_text(folder._result(job), text)

    def give_back(self) -> None:
        """Makes the job wait again, as if it had never started."""
        self._write("")

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.handle)

    def _write(self, text: str) -> None:
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, text.encode(), 0)
