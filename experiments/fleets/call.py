"""A job as submitit calls it: a process whose end is recorded beside its log."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from configuration.files import (
    TEXT_LIMIT,
    open_file,
    own_file,
    read_text,
    write_text,
)
from experiments.signals import handled

_INTERRUPTED = 130
_GPUS = "CUDA_VISIBLE_DEVICES"
_NOTICE = 60  # seconds in which SLURM's SIGUSR2 may follow its SIGTERM


@dataclasses.dataclass
class Call:
    """A job; submitit pickles it and loads this module, which imports nothing slow."""

    name: str
    command: tuple[str, ...]
    sha256: str
    folder: Path
    """The fleet's folder, absolute."""
    result: Path | None
    """Folder that the command fills, if it names one."""

    def __post_init__(self) -> None:
        self.stopping = False
        self.log = self.folder / "logs" / f"{self.name}.log"
        self._record = self.folder / "results" / f"{self.name}.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._gpus = {_GPUS: os.environ[_GPUS]} if _GPUS in os.environ else {}

    def exit_code(self) -> int | None:
        """Returns how this command ended; None if it did not, or its result is gone."""
        try:
            with open_file(self._record, TEXT_LIMIT, follow=False) as file:
                record = json.load(file)
            code, same = record["exit_code"], record["sha256"] == self.sha256
            if type(code) is not int:
                return None
            whole = code or self.result is None or self._is_whole(self.result)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return code if same and whole else None

    def check(self) -> None:
        """Refuses links in the fleet's folder: files elsewhere would be written.

        Raises:
            OSError: naming the link.
        """
        for path in (self.log, self._record):
            for each in (path.parent, path):
                if each.is_symlink():
                    reason = "is a link, and is not followed; move it away"
                    raise OSError(errno.ELOOP, reason, str(each))

    def _is_whole(self, result: Path) -> bool:
        if self.command[0] != "experiments.train":
            return result.is_dir()
        run = json.loads(read_text(result / "config.json"))["run"]
        last = "artifact" if run["stop_after"] is None else "checkpoints"
        return (result / last).is_dir()

    def is_running(self) -> bool:
        """Whether a process runs the job, on any machine."""
        try:
            with open_file(self.log, follow=False) as log:
                return not _lock(log, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False

    def state(self) -> str:
        """Returns "done", "running", "missing", or how the command failed."""
        if self.is_running():
            return "running"
        code = self.exit_code()
        return "missing" if code is None else f"failed ({code})" if code else "done"

    def __call__(self) -> None:
        """Runs the job, unless it is done or another process runs it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.check()
        with handled(self._stop), open(self.log, "ab", opener=own_file) as log:
            # Again and again: `is_running` locks for an instant.
            free = any(_lock(log) or time.sleep(0.1) for _ in range(5))
            if free and not self.stopping and self.exit_code() != 0:
                self._run(log)

    def _run(self, log: IO[bytes]) -> None:
        line = [sys.executable, "-m", *self.command]
        log.write(f"--- {time.strftime('%F %T')}: {shlex.join(line)}\n".encode())
        log.flush()
        self._record.unlink(missing_ok=True)
        scheduler, variables = os.environ.get("SUBMITIT_EXECUTOR"), dict(os.environ)
        if scheduler == "local":  # submitit's local jobs see no GPU
            variables.pop(_GPUS, None)
            variables |= self._gpus
        # A terminal sends SIGINT and SIGHUP, SLURM SIGUSR2, to all processes. The job
        # hears of them through us, as SIGTERM: what is blocked here stays so in a new
        # process.
        held = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
        try:
            # It inherits the lock of the log, which holds until the last of us ends.
            self._process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if self.stopping:
            self._process.terminate()
        self._end(self._process.wait())
        if self.stopping and scheduler == "slurm":
            time.sleep(_NOTICE)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopping = True
        if self._process is not None:
            self._process.terminate()

    def _end(self, code: int) -> None:
        """Records the end of the process, unless it was interrupted."""
        if code != _INTERRUPTED and not (code and self.stopping):
            record = {"sha256": self.sha256, "exit_code": code}
            write_text(self._record, json.dumps(record) + "\n")

    def checkpoint(self) -> Any:
        """Lets the job save and end, and returns what submitit shall queue again."""
        from submitit.helpers import DelayedSubmission

        self.stopping = True
        if self._process is not None:
            # Not `wait`: this handler may have interrupted one, which holds its lock.
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process.pid, signal.SIGTERM)
                while (ended := os.waitpid(self._process.pid, os.WNOHANG))[0] == 0:
                    time.sleep(0.1)
                self._end(os.waitstatus_to_exitcode(ended[1]))
        again = dataclasses.replace(self)
        again._gpus = self._gpus
        return DelayedSubmission(again)


def _lock(log: IO[Any], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(log, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        why = f"{error.strerror}; a fleet needs a file system with locks"
        raise OSError(error.errno, why, log.name) from None
    return True
