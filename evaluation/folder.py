"""The folder of an evaluation: rows, report, finished jobs, and what they belong to.

    rows.jsonl       every run
    report.html      tables and plots
    curves.png       training curves
    evaluation.json  the stamp: suite, identity, and the sha256 of the three
    jobs/            the outcome of each job, under its own identity

The stamp is written last. What it does not vouch for is made again, from jobs where
they are stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configuration import digests, identity
from configuration.encoding import decode, encode
from configuration.files import read_text, write_text
from configuration.folders import locked
from evaluation.results import EvalRow, read_rows

ROWS, REPORT, CURVES = "rows.jsonl", "report.html", "curves.png"
STAMP, JOBS = "evaluation.json", "jobs"
_LOCK = ".evaluation.lock"


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What an evaluation's files belong to."""

    suite: str
    """Name of the suite: a folder belongs to one."""
    identity: Mapping[str, Any]
    """Identity of the evaluation (see `evaluation.identity`)."""
    also: tuple[str, ...] = ()
    """The baselines that were asked for beside those of the plan."""
    sha256: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Digests of the files by name; none while the evaluation runs."""


def read_stamp(folder: Path) -> Stamp | None:
    """Reads the stamp of a folder; None if there is none that this version knows."""
    try:
        return decode(Stamp, json.loads(read_text(folder / STAMP)), "", {})
    except (OSError, ValueError, RecursionError):
        return None


def write_stamp(folder: Path, stamp: Stamp) -> None:
    """Writes the stamp, replacing an earlier one."""
    write_text(folder / STAMP, json.dumps(encode(stamp, {}), indent=1) + "\n")


def sums(folder: Path) -> dict[str, str]:
    """Returns the digests of the files that a stamp vouches for."""
    return digests.of_files(folder / name for name in (ROWS, REPORT, CURVES))


def why_not(folder: Path, stamp: Stamp | None, now: Mapping[str, Any]) -> str | None:
    """Returns why the files are not those of this evaluation; None if they are."""
    if stamp is None:
        return "there is no evaluation"
    if changed := identity.differences(stamp.identity, now):
        return identity.described(changed)
    try:
        found = sums(folder)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    changed = identity.differences(dict(stamp.sha256), found)
    return identity.described(changed) or None


def stored_rows(folder: Path) -> list[EvalRow]:
    """Reads the rows of a finished evaluation."""
    return read_rows(folder / ROWS)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other evaluations out of a folder while the block runs.

    Raises:
        OSError: if another process evaluates there, or the folder cannot be written.
    """
    with locked(folder / _LOCK, wait=False):
        yield
