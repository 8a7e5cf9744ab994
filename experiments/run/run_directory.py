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

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from configuration.encoding import is_absent
from configuration.files import (
    open_file,
    own_file,
    read_text,
    recover,
    replacing,
    write_text,
)
from configuration.folders import locked
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
_LONGEST_LINE = 2**20  # bytes


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
        try:
            os.fsencode(path).decode()
        except UnicodeDecodeError:
            raise InputError(
                f"run directory {path} has a name that is not UTF-8; choose another "
                "with --run.directory"
            ) from None
        self._held = contextlib.ExitStack()
        choose = "choose another with --run.directory"
        try:
            self._held.enter_context(locked(path / ".lock", wait=False))
        except BlockingIOError as error:
            raise InputError(
                f"run directory {path} {error.strerror}; wait for it or {choose}"
            ) from None
        except (OSError, ValueError) as error:
            reason = error
            if isinstance(error, OSError):
                reason = f"{error.filename}: {error.strerror}"
            raise InputError(
                f"run directory {path} cannot be written: {reason}; {choose}"
            ) from None
        self._recover()

    def _recover(self) -> None:
        """Completes or removes what a killed process left unfinished."""
        recover(self.path / "artifact")
        for name in ("config.json", PARENT, _SAVED, *_RECORDS):
            for left in self.path.glob(f".{name}-*.tmp"):
                left.unlink()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

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
        done = 0
        for row, _ in _rows(self.path / METRICS, follow=False):
            done = row["step"]
        begun = done > 0 or self.checkpoints.exists()
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
            with _open(path, "a") as file:
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
        number = 0
        for row, _ in _rows(self.path / METRICS, follow=False):
            number = number + 1 if row.get("skipped") else 0
        return number

    def truncate_after(self, step: int, validated: Collection[int] = ()) -> None:
        """Drops records after a checkpoint's step, which will be run again.

        Args:
            step: of the checkpoint.
            validated: steps up to it after which there was a validation.

        Raises:
            InputError: if the records do not hold each step and validation up to the
                checkpoint once, or if one is a link, which could lead elsewhere.
        """
        # All are replaced, or none. They are copied, not cut: in a backup made of hard
        # links they may be the same files.
        with contextlib.ExitStack() as copies:
            for name in _RECORDS:
                path = self.path / name
                steps = _copied(path, step, copies)
                pairs = itertools.zip_longest(steps, range(1, step + 1))
                if name == METRICS and any(a != b for a, b in pairs):
                    raise InputError(
                        f"{path} does not hold the steps 1 to {step} of the checkpoint "
                        "that is continued, each once; bring it back or move the run "
                        "away"
                    )
                lost = set(validated if name == VALIDATION else ())
                for present in steps:
                    lost.discard(present)
                if lost:
                    raise InputError(
                        f"{path} does not hold the validation of step {min(lost)}, "
                        f"though the checkpoint of step {step} is continued; bring it "
                        "back or move the run away"
                    )


def _copied(path: Path, step: int, copies: contextlib.ExitStack) -> Iterator[int]:
    """Copies a record's rows up to a step, and yields their steps.

    The copy takes the record's place when `copies` end well.
    """
    rows = _rows(path, follow=False)
    if os.path.lexists(path):
        copy = copies.enter_context(replacing(path))
        for row, line in rows:
            if row["step"] <= step:
                copy.write(line.rstrip(b"\n") + b"\n")
                yield row["step"]


def _open(path: Path, mode: str) -> IO[str]:
    """Opens a file of the run; refuses a link, which could lead elsewhere."""
    return open(path, mode, encoding="utf-8", errors="replace", opener=own_file)


def read_config(path: Path) -> dict[str, Any]:
    """Reads the stored configuration of a run directory, in today's form.

    Raises:
        InputError: if it is missing or damaged.
    """
    file = path / "config.json"
    try:
        config = json.loads(read_text(file))
    except OSError as error:
        raise InputError(
            f"{path} is not a run directory: {file}: {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("num_steps"), int):
        raise InputError(f"{file} is damaged: it holds no configuration")
    return in_form_of_today(config)


def in_form_of_today(config: dict[str, Any]) -> dict[str, Any]:
    """Returns an encoded configuration of any version as this version writes it."""
    config = dict(config)
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
        return json.loads(read_text(file)) if os.path.lexists(file) else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a record; a last line cut off by a kill is dropped.

    Raises:
        InputError: naming the file, if it is none, or the line that is damaged.
    """
    return [row for row, _ in _rows(path)]


def _rows(path: Path, follow: bool = True) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yields the rows of a record and their lines, as `read_rows`.

    Unless `follow`, the record may be no link, which could lead elsewhere.
    """
    if not os.path.lexists(path):
        return
    damaged = 0
    try:
        with open_file(path, follow=follow) as file:
            lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
            for number, line in enumerate(lines, start=1):
                if damaged:
                    raise InputError(f"{path} is damaged in line {damaged}")
                try:
                    row = json.loads(line.decode())
                    if not isinstance(row["step"], int):
                        raise ValueError("step is not a number")
                except (ValueError, TypeError, KeyError, RecursionError):
                    damaged = number
                    continue
                yield row, line
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; move it away"
        ) from None


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
