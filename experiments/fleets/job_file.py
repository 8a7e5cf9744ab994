"""Job files: lists and sweeps of independent commands (`docs/howto/slurm.md`)."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configuration.files import read_text
from experiments.command_line import COMMANDS, InputError, suggestion

RUNNABLE = tuple(f"experiments.{name}" for name in COMMANDS if name != "fleet")
"""Modules that a job may run."""
MOST_JOBS = 100_000
_LARGEST = 64 * 2**20  # bytes of a file
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+@-]{0,149}")
_FOREIGN = re.compile(r"[^A-Za-z0-9._=,+@-]|\.(?=\.)")


def file_name(text: str) -> str:
    """Returns a text with `_` for what the name of a job cannot hold."""
    return _FOREIGN.sub("_", text)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a command; its name names its files in the fleet's folder."""

    name: str
    command: tuple[str, ...]
    """A module of `experiments` and its arguments."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or ".." in self.name:
            raise ValueError(
                f"name = {self.name!r} must be at most 150 letters, digits and "
                "._=,+@-, begin with a letter or digit, and not hold '..'"
            )
        if not self.command:
            raise ValueError(f"command = () of job {self.name!r} must name a module")
        text = "".join(self.command)
        # A surrogate is half a character.
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"command of job {self.name!r} holds a NUL or a surrogate")

    @property
    def sha256(self) -> str:
        """Digest of the command: a result belongs to it, not to the name alone."""
        return hashlib.sha256(json.dumps(self.command).encode()).hexdigest()


def read_jobs(path: Path) -> tuple[Job, ...]:
    """Reads the jobs of a file in order, with sweeps expanded.

    Raises:
        InputError: if the file is missing or damaged, or a job is wrong.
    """
    try:
        data = json.loads(read_text(path, _LARGEST), object_pairs_hook=_unique)
    except OSError as error:
        raise InputError(f"job file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"job file {path} is damaged: {error}") from None
    try:
        jobs = tuple(_all(data))
        for job in jobs:
            if (module := job.command[0]) not in RUNNABLE:
                raise ValueError(
                    f"job {job.name!r}: command {module!r} is none of "
                    f"{', '.join(RUNNABLE)}{suggestion(module, RUNNABLE)}"
                )
        name, count = Counter(job.name for job in jobs).most_common(1)[0]
        if count > 1:
            raise ValueError(f"jobs: the name {name!r} is that of several jobs")
    except ValueError as error:
        raise InputError(f"job file {path}: {error}") from None
    return jobs


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object; JSON readers silently drop the first of two equal keys."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"the key {key!r} stands twice in one object")
    return dict(pairs)


def _all(data: Any) -> Iterator[Job]:
    if isinstance(data, dict) and "jobs" not in data:
        data = {"jobs": [data]}
    _check_keys(data, "the file", {"jobs"}, {"jobs"})
    if not isinstance(data["jobs"], list) or not data["jobs"]:
        raise ValueError(f"jobs = {data['jobs']!r} must be a list of jobs, not empty")
    total = 0
    for number, entry in enumerate(data["jobs"]):
        where = f"jobs[{number}]"
        required = {"command", "vary" if _is_sweep(entry) else "name"}
        _check_keys(entry, where, required, {"name", "command", "vary"})
        total += _size(entry["vary"], f"{where}.vary") if _is_sweep(entry) else 1
        if total > MOST_JOBS:
            raise ValueError(
                f"jobs makes {total:,} jobs or more, at most {MOST_JOBS:,} can run"
            )
    for number, entry in enumerate(data["jobs"]):
        where, sweep = f"jobs[{number}]", _is_sweep(entry)
        if not isinstance(name := entry.get("name", ""), str):
            raise ValueError(f"{where}.name = {name!r} must be a text")
        command = _words(entry["command"], f"{where}.command")
        varied = _varied(entry["vary"], f"{where}.vary") if sweep else [("", [])]
        for label, added in varied:
            whole = ",".join(filter(None, (name, label)))
            whole = file_name(whole) if sweep else name
            words = [word.replace("{name}", whole) for word in command + added]
            yield Job(whole, tuple(words))


def _is_sweep(entry: Any) -> bool:
    return isinstance(entry, dict) and "vary" in entry


def _size(vary: Any, where: str) -> int:
    """Checks the flags of a sweep, and returns the number of its jobs."""
    if not isinstance(vary, dict) or not vary:
        raise ValueError(
            f"{where} = {vary!r} must be an object: flag to list of values"
        )
    for flag, values in vary.items():
        if not flag.startswith("--"):
            raise ValueError(f"{where}: {flag!r} must be a flag, as '--seed'")
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}.{flag} = {values!r} must be a list of values")
    size = 1
    for values in vary.values():
        # Stopped early: the product of thousands of lists takes long itself.
        if (size := size * len(values)) > MOST_JOBS:
            raise ValueError(
                f"{where} makes {size:,} jobs or more, at most {MOST_JOBS:,} can run"
            )
    return size


def _varied(vary: Mapping[str, Any], where: str) -> Iterator[tuple[str, list[str]]]:
    """Yields a label and the added words of every combination of a sweep."""
    options = [
        [(flag, _words(value, f"{where}.{flag}")) for value in values]
        for flag, values in vary.items()
    ]
    for chosen in itertools.product(*options):
        parts = [f"{flag.lstrip('-')}={'x'.join(words)}" for flag, words in chosen]
        yield (
            ",".join(parts),
            [word for flag, words in chosen for word in (flag, *words)],
        )


def _words(value: Any, where: str) -> list[str]:
    """Returns the words of a text, a number, or a list of them."""
    values = value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise ValueError(f"{where} = {value!r} must be texts or numbers")
        if isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"{where} = {value!r} must be finite")
    return [str(each) for each in values]


def _check_keys(data: Any, where: str, required: set[str], allowed: set[str]) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{where} = {data!r} must be an object")
    if missing := sorted(required - data.keys()):
        raise ValueError(f"{where} has no {missing[0]!r}")
    if unknown := sorted(data.keys() - allowed):
        known = ", ".join(sorted(allowed))
        raise ValueError(f"{where}.{unknown[0]} is unknown: known are {known}")
