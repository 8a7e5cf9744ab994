"""The folder of a training run: configuration, lock, metrics, checkpoints.

    config.json        the resolved configuration
    metrics.jsonl      one line per outer step, without times
    validation.jsonl   one line per validation
    timing.jsonl       seconds and inner steps per second, one line per flush
    parent.json        the artifact that the run began with, if any
    checkpoints/       the newest complete states
    .saved             marks that there were checkpoints, whose loss is an error
    artifact/          the released optimizer

A run directory belongs to one configuration. When a run is continued, the options of
`run` may change and the run may be made longer; any other change is refused.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import itertools
import json
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from configuration.encoding import is_absent
from configuration.files import recover, write_text
from experiments.command_line import InputError
from experiments.presets.configs import TrainConfig
from experiments.presets.estimators import migrated
from experiments.presets.serialization import decode, differences, encode, flatten

METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
TIMING = "timing.jsonl"
PARENT = "parent.json"
CHECKPOINTS = "checkpoints"
_RECORDS = (METRICS, VALIDATION, TIMING)
_SAVED = ".saved"


class RunDirectory:
    """A run's folder, locked for other processes while the `with` block runs.

    The lock is the kernel's: it ends with the process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        """Creates the folder if needed and takes its lock.

        Raises:
            InputError: if it cannot be written, or another process trains in it.
        """
        self.path = path
        lock = path / ".lock"
        try:
            os.fsencode(path).decode()
        except UnicodeDecodeError:
            raise InputError(
                f"run directory {path} has a name that is not UTF-8; choose another "
                "with --run.directory"
            ) from None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = _open(lock, os.O_RDWR | os.O_CREAT)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(
                f"run directory {path} cannot be written: {reason}; choose another "
                "with --run.directory"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with self._lock:
                raise InputError(self._not_locked(error)) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()
        self._recover()

    def _not_locked(self, error: OSError) -> str:
        choose = "choose another with --run.directory"
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return (
                f"run directory {self.path} cannot be locked: {error.strerror}; its "
                f"file system may have no locks: {choose}"
            )
        owner = self._lock.read().strip() or "unknown"
        return (
            f"run directory {self.path} is in use by process {owner}; wait for it or "
            f"{choose}"
        )

    def _recover(self) -> None:
        """Completes or removes what a killed process left unfinished."""
        recover(self.path / "artifact")
        for name in ("config.json", PARENT, _SAVED, *_RECORDS):
            for left in self.path.glob(f".{name}-*.tmp"):
                left.unlink()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS

    def claim(self, config: dict[str, Any]) -> None:
        """Checks the configuration against the stored one, and stores it.

        A folder without records takes any configuration.

        Raises:
            InputError: listing the fields that differ and would change the results; or
                if the stored configuration is damaged, or the checkpoints of a recorded
                run are gone.
        """
        path = self.path / "config.json"
        recorded = read_rows(self.path / METRICS)
        begun = bool(recorded) or self.checkpoints.exists()
        if path.exists() and begun:
            stored = read_config(self.path)
            changed = [
                line
                for line in _changes(stored, config)
                if not line.startswith("run.") and not _longer(line, stored, config)
            ]
            if changed:
                only = [line.split(":")[0] for line in changed] == ["num_steps"]
                hint = "; a run can only be made longer" if only else ""
                raise InputError(
                    f"{self.path} holds a run of another configuration "
                    f"({'; '.join(changed)}{hint}); repeat its fields or choose "
                    "another --run.directory"
                )
            names = ("step_*", ".step_*-old")
            saved = os.path.lexists(self.path / _SAVED)
            if saved and not any(any(self.checkpoints.glob(n)) for n in names):
                what = "holds none" if self.checkpoints.exists() else "is missing"
                done = recorded[-1]["step"] if recorded else 0
                raise InputError(
                    f"{self.checkpoints} {what}, though {done} steps are recorded and "
                    "there were checkpoints; bring it back or move the run away"
                )
        elif begun:
            raise InputError(f"{path} is missing beside a run's files; move them away")
        write_text(path, json.dumps(config, indent=2) + "\n")

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Appends rows to a record."""
        path = self.path / name
        try:
            with _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None

    def mark_saved(self) -> None:
        """Marks that there is a checkpoint, so that its loss will be noticed."""
        if not os.path.lexists(self.path / _SAVED):
            write_text(self.path / _SAVED, "")

    def skipped_in_a_row(self) -> int:
        """Returns how many of the last recorded steps in a row moved nothing."""
        rows = reversed(read_rows(self.path / METRICS))
        return sum(1 for _ in itertools.takewhile(lambda r: r.get("skipped"), rows))

    def truncate_after(self, step: int, validated: Collection[int] = ()) -> None:
        """Drops records after a checkpoint's step, which will be run again.

        Args:
            step: of the checkpoint.
            validated: steps up to it after which there was a validation.

        Raises:
            InputError: if the records do not hold each step and validation up to the
                checkpoint once, or if one is a link, which could lead elsewhere.
        """
        for name in _RECORDS:
            path = self.path / name
            if path.is_symlink():
                raise InputError(f"{path} is a link, not a file; move it away")
            rows = [row for row in read_rows(path) if row["step"] <= step]
            steps = [row["step"] for row in rows]
            if name == METRICS and steps != [*range(1, step + 1)]:
                raise InputError(
                    f"{path} does not hold the steps 1 to {step} of the checkpoint "
                    "that is continued, each once; bring it back or move the run away"
                )
            lost = sorted(set(validated) - set(steps)) if name == VALIDATION else ()
            if lost:
                raise InputError(
                    f"{path} does not hold the validation of step {lost[0]}, though "
                    f"the checkpoint of step {step} is continued; bring it back or "
                    "move the run away"
                )
            if path.exists():
                write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


def _open(path: Path, flags: int) -> IO[str]:
    """Opens a file of the run; refuses a link, which could lead elsewhere."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, f"{path.name} is a link", str(path)) from None
    mode = "r+" if flags & os.O_RDWR else "a"
    return os.fdopen(handle, mode, encoding="utf-8", errors="replace")


def read_config(path: Path) -> dict[str, Any]:
    """Reads the stored configuration of a run directory, in today's form.

    Raises:
        InputError: if it is missing or damaged.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise InputError(
            f"{path} is not a run directory: {file}: {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("num_steps"), int):
        raise InputError(f"{file} is damaged: it holds no configuration")
    for field in dataclasses.fields(TrainConfig):
        if field.name in config and is_absent(field, config[field.name]):
            del config[field.name]
    if isinstance(lopt := config.get("lopt"), dict) and "kind" not in lopt:
        # The only learned optimizer at first.
        config["lopt"] = {"kind": "SmallFC", **lopt}
    if isinstance(estimator := config.get("estimator"), dict):
        config["estimator"] = migrated(estimator)
    return config


def write_parent(path: Path, parent: dict[str, Any]) -> None:
    """Records the artifact that a run begins with."""
    write_text(path / PARENT, json.dumps(parent, indent=2) + "\n")


def read_parent(path: Path) -> dict[str, Any] | None:
    """Reads the record of the artifact that a run began with, if any.

    Raises:
        InputError: if the record is damaged.
    """
    file = path / PARENT
    try:
        return json.loads(file.read_text()) if os.path.lexists(file) else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a record; a last line cut off by a kill is dropped.

    Raises:
        InputError: naming the file and the line that is damaged.
    """
    try:
        lines = path.read_text().splitlines() if os.path.lexists(path) else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise ValueError("step is not a number")
            rows.append(row)
        except (ValueError, TypeError, KeyError, RecursionError):
            if number < len(lines):
                raise InputError(f"{path} is damaged in line {number}") from None
    return rows


def _changes(stored: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Returns `differences`, with the values for which `later` fields are left out.

    Only fields that the other side has are filled in.
    """
    sides = flatten(stored), flatten(config)
    if sides[0].keys() == sides[1].keys():
        return differences(stored, config)
    try:
        whole = [
            flatten(encode(decode(TrainConfig, side), absent=True))
            for side in (stored, config)
        ]
    except ValueError:
        # A field that this version does not have is a difference as it is.
        return differences(stored, config)
    filled = [
        side | {n: full[n] for n in other.keys() - side.keys() if n in full}
        for side, other, full in zip(sides, sides[::-1], whole, strict=True)
    ]
    return differences(*filled)


def _longer(line: str, stored: dict[str, Any], config: dict[str, Any]) -> bool:
    return line.startswith("num_steps:") and config["num_steps"] >= stored["num_steps"]
