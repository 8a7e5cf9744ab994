"""Job files: lists and sweeps of independent commands, as JSON.

    {"jobs": [{"name": "seed0",
               "command": ["experiments.train", "quickstart", "--seed", "0",
                           "--run.directory", "runs/{name}"]}]}

is a list of jobs. A *sweep* is every combination of some values. It may stand alone or
among the jobs, where its `name` begins the names of its jobs:

    {"command": ["experiments.train", "quickstart", "--run.directory", "runs/{name}"],
     "vary": {"--seed": [0, 1], "--outer.learning-rate": [1e-3, 3e-3]}}

Its jobs are called `seed=0,outer.learning-rate=0.001` and so on. `{name}` in a command
stands for the job's name, so that every run has its own folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.command_line import COMMANDS, InputError, suggestion

RUNNABLE = tuple(f"experiments.{name}" for name in COMMANDS if name != "fleet")
"""Modules that a job may run."""
MOST_JOBS = 100_000
_LONGEST_NAME = 150
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+@-]*")
_FOREIGN = re.compile(r"[^A-Za-z0-9._=,+@-]|\.(?=\.)")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a command; its name names its files in the fleet's folder."""

    name: str
    command: tuple[str, ...]
    """A module of `experiments` and its arguments."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or ".." in self.name:
            raise ValueError(
                f"name = {self.name!r} must be letters, digits and ._=,+@- only, begin "
                "with a letter or digit, and not hold '..'"
            )
        if len(self.name) > _LONGEST_NAME:
            raise ValueError(
                f"name = {self.name!r} has {len(self.name)} characters, "
                f"at most {_LONGEST_NAME} can be a file's; give the sweep fewer fields"
            )
        if not self.command:
            raise ValueError(f"command = () of job {self.name!r} must name a module")
        if any("\0" in word for word in self.command):
            raise ValueError(f"command of job {self.name!r} holds a NUL character")
        try:
            "".join(self.command).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"command of job {self.name!r} holds half a character (a surrogate)"
            ) from None

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
        data = json.loads(path.read_text(), object_pairs_hook=_unique)
    except OSError as error:
        raise InputError(f"job file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"job file {path} is damaged: {error}") from None
    try:
        jobs = tuple(_all(data))
        for job in jobs:
            _check_module(job)
        names = Counter(job.name for job in jobs)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"jobs: the name {twice[0]!r} is that of several jobs")
    except ValueError as error:
        raise InputError(f"job file {path}: {error}") from None
    return jobs


def _check_module(job: Job) -> None:
    module = job.command[0]
    if module not in RUNNABLE:
        raise ValueError(
            f"job {job.name!r}: command {module!r} is none of {', '.join(RUNNABLE)}"
            f"{suggestion(module, RUNNABLE)}"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object; JSON readers silently drop the first of two equal keys."""
    counts = Counter(key for key, _ in pairs)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"the key {twice[0]!r} stands twice in one object")
    return dict(pairs)


def _all(data: Any) -> Iterator[Job]:
    if isinstance(data, dict) and "jobs" not in data:
        data = {"jobs": [data]}
    _check_keys(data, "the file", required={"jobs"}, allowed={"jobs"})
    if not isinstance(data["jobs"], list) or not data["jobs"]:
        raise ValueError(f"jobs = {data['jobs']!r} must be a list of jobs, not empty")
    for number, entry in enumerate(data["jobs"]):
        where = f"jobs[{number}]"
        sweep = isinstance(entry, dict) and "vary" in entry
        required = {"command", "vary"} if sweep else {"command", "name"}
        _check_keys(entry, where, required, {"name", "command", "vary"})
        name = entry.get("name")
        if "name" in entry and not isinstance(name, str):
            raise ValueError(f"{where}.name = {name!r} must be a text")
        command = _words(entry["command"], f"{where}.command")
        if not sweep:
            yield _job(str(name), command)
            continue
        yield from _sweep(name, command, entry["vary"], f"{where}.vary")


def _sweep(
    name: str | None, command: list[str], vary: Any, where: str
) -> Iterator[Job]:
    if not isinstance(vary, dict) or not vary:
        raise ValueError(
            f"{where} = {vary!r} must be an object: flag to list of values"
        )
    for flag, values in vary.items():
        if not flag.startswith("--"):
            raise ValueError(f"{where}: {flag!r} must be a flag, as '--seed'")
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}.{flag} = {values!r} must be a list of values")
    if (size := math.prod(map(len, vary.values()))) > MOST_JOBS:
        raise ValueError(f"{where} makes {size:,} jobs, at most {MOST_JOBS:,} can run")
    options = [
        [(flag, _words(value, f"{where}.{flag}")) for value in values]
        for flag, values in vary.items()
    ]
    for chosen in itertools.product(*options):
        parts = [f"{flag.lstrip('-')}={'x'.join(words)}" for flag, words in chosen]
        whole = ",".join([name, *parts] if name else parts)
        added = [word for flag, words in chosen for word in (flag, *words)]
        yield _job(_FOREIGN.sub("_", whole), command + added)


def _job(name: str, command: list[str]) -> Job:
    return Job(name, tuple(word.replace("{name}", name) for word in command))


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
        raise ValueError(
            f"{where}.{unknown[0]} is unknown: known are {', '.join(sorted(allowed))}"
        )
