"""SHA-256 of files, remembered on disk while they demonstrably stay the same.

Files of data are hashed at every start. So a digest is kept under the device, the
inode, the size and both times of its file. The time of change (ctime) cannot be set by
a program, so a file that was written again has another. Where that is not certain, on
network and foreign file systems, a digest is kept for this process alone; and nowhere
if the file changed within `_SETTLED` before it was read, since a clock has steps.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from configuration.files import open_file, read_text, write_text
from configuration.folders import cache_dir

_RELIABLE = ("btrfs", "ext2", "ext3", "ext4", "f2fs", "xfs")
"""File systems on which the kernel sets ctime at every change, or after a sync at every
write to a memory map."""
_SETTLED = 2_000_000_000  # nanoseconds


def of_json(value: object) -> str:
    """Returns the digest of a JSON value; the order of keys does not count."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_files(paths: Iterable[Path]) -> dict[str, str]:
    """Returns the digests of files by name.

    Raises:
        OSError: naming the file that cannot be read, or is no file.
    """
    return {path.name: of_file(path) for path in paths}


def of_file(path: Path) -> str:
    """Returns the digest of a file's content.

    Raises:
        OSError: if it cannot be read, or is no file.
    """
    with open_file(path) as file:
        # What lies in memory maps is written, so that later writes change the time.
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())
        before = os.fstat(file.fileno())
        key, entry = of_json(state(before)), _entry(before)
        if known := _seen.get(key) or (entry and _remembered(entry)):
            return known
        now = time.time_ns()
        found = _hashed(file)
        settled = now - max(before.st_ctime_ns, before.st_mtime_ns) > _SETTLED
        same = state(os.fstat(file.fileno())) == state(before)
    if settled and same:
        _seen[key] = found
        # A digest that cannot be kept is computed again.
        with contextlib.suppress(OSError):
            if entry is not None:
                write_text(entry, f"{_checked(entry, found)}\n")
    return found


_seen: dict[str, str] = {}


def _hashed(file: io.BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def state(found: os.stat_result) -> Mapping[str, int]:
    """Returns what differs once a file was written again or replaced."""
    names = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    return {name: getattr(found, name) for name in names}


def _entry(found: os.stat_result) -> Path | None:
    """Returns where a file's digest is remembered; None if it cannot be."""
    if _file_system(found.st_dev) not in _RELIABLE:
        return None
    name = of_json(state(found))
    return cache_dir() / "sha256" / name[:2] / name


def _remembered(entry: Path) -> str | None:
    try:
        text = read_text(entry)
    except (OSError, ValueError):
        return None
    digest = text[:64]
    return digest if text == f"{_checked(entry, digest)}\n" else None


def _checked(entry: Path, digest: str) -> str:
    """Returns a digest with a checksum of it and of the entry that it belongs to."""
    about = hashlib.sha256(f"{entry.name} {digest}".encode()).hexdigest()
    return f"{digest} {about}"


@functools.cache
def _file_system(device: int) -> str | None:
    """Returns the type of a mounted file system; None if the kernel does not say."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in lines:
        mount, _, described = line.partition(" - ")
        if mount.split()[2:3] == [wanted]:
            return described.split()[0]
    return None
