"""The folder of a fleet: who does which job, and what came of it.

    claims/NAME     who does the job, or did; locked as long as it is done
    results/NAME.json   what came of it: written once, as a whole
    failed/NAME/1.json  results of failures that were done again
    logs/NAME.log   all that the job printed

Any number of workers, on any machines that see the folder, share the jobs. A worker
takes the kernel's lock (`flock`) on a job's claim, then looks for a result, and only
then begins. Locks end with their processes, whatever ended these: a claim that nobody
holds and that has no result is *stale*, and the next worker takes it over. The job's
own process inherits the lock, so a job that outlives its worker is not begun again
beside itself. Claims are never deleted, or two workers could hold the lock of two files
of one name.

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
"""States of jobs that a worker may begin."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a job."""

    name: str
    sha256: str
    """Of the job's command."""
    command: tuple[str, ...]
    exit_code: int
    """Of the process; −N if signal N ended it."""
    seconds: float
    host: str
    log: str
    """Path of the log in the fleet's folder."""


class JobFolder:
    """A fleet's folder."""

    def __init__(self, path: Path) -> None:
        """Args: the folder; it is made by the first claim."""
        self.path = path

    def check(self, jobs: Sequence[Job]) -> None:
        """Sees that what is stored under the names of jobs is theirs.

        Raises:
            InputError: naming the job that has changed.
        """
        for job in jobs:
            self.result(job)

    def result(self, job: Job) -> Result | None:
        """The job's result; None if there is none, or none that can be read.

        Raises:
            InputError: if it is that of another command.
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
        """Where a job stands, as far as can be seen now."""
        result = self.result(job)
        if result is not None:
            return "failed" if result.exit_code else "done"
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
            # Written since, or damaged.
            result = self.result(job)
            if result is None:
                return "damaged"
            return "failed" if result.exit_code else "done"
        return "stale" if owned else "waiting"

    def claim(self, job: Job) -> Claim | None:
        """Takes a job, if it has no result and nobody does it.

        Raises:
            InputError: if the file system has no locks; if the result is another job's.
        """
        handle = self._lock(job)
        if handle is None:
            return None
        try:
            # Only now: whoever had the lock may have finished a moment ago.
            if self.result(job) is None:
                return Claim(self, job, handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None

    def forget_failure(self, job: Job) -> bool:
        """Puts a failed job's result aside, so that it is done again."""
        result, handle = self.result(job), None
        if result is None or result.exit_code == 0 or not (handle := self._lock(job)):
            return False
        try:
            result = self.result(job)  # another fleet may have been quicker
            if result is None or result.exit_code == 0:
                return False
            folder = self.path / "failed" / job.name
            folder.mkdir(parents=True, exist_ok=True)
            number = 1 + len(list(folder.iterdir()))
            self._result(job).rename(folder / f"{number}.json")
            os.ftruncate(handle, 0)  # nobody left it: it waits
            return True
        finally:
            os.close(handle)

    def log(self, job: Job) -> Path:
        """The file of what a job prints."""
        return self.path / "logs" / f"{job.name}.log"

    def owner(self, job: Job) -> dict[str, Any]:
        """Who holds the job's claim, or held it; empty if nobody says so."""
        try:
            owner = json.loads(self._claim(job).read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _lock(self, job: Job) -> int | None:
        """The open claim with its lock; None if somebody has it."""
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

    def write_result(self, job: Job, exit_code: int, seconds: float) -> Result:
        """Stores a result; for the holder of the claim."""
        result = Result(
            name=job.name,
            sha256=job.sha256,
            command=job.command,
            exit_code=exit_code,
            seconds=round(seconds, 3),
            host=platform.node(),
            log=str(self.log(job).relative_to(self.path)),
        )
        text = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
        write_text(self._result(job), text)
        return result


class Claim:
    """A job that is ours until this is closed, or the process ends."""

    def __init__(self, folder: JobFolder, job: Job, handle: int) -> None:
        """Args: the folder, the job, the open claim with its lock."""
        self.handle = handle
        """To be inherited by the job's process."""
        self._folder, self._job = folder, job
        self.before = folder.owner(job)
        """Who held it before and left no result; empty if nobody did."""
        self._write(
            json.dumps(
                {
                    "host": platform.node(),
                    "pid": os.getpid(),
                    "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                    "sha256": job.sha256,
                }
            )
        )

    def finish(self, exit_code: int, seconds: float) -> Result:
        """Writes the job's result."""
        return self._folder.write_result(self._job, exit_code, seconds)

    def give_back(self) -> None:
        """The job waits again, as if nobody had begun it."""
        self._write("")

    def __enter__(self) -> Claim:
        """The claim, held."""
        return self

    def __exit__(self, *error: object) -> None:
        """Gives up the lock (the job's process may still hold it)."""
        os.close(self.handle)

    def _write(self, text: str) -> None:
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, text.encode(), 0)
