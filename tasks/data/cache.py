"""A cache on disk of arrays that take long to make, verified whenever they are read.

An entry is a folder of `.npy` files and a manifest with their sha256, which appears by
one rename. Writers hold a
lock that the system releases when they die. A damaged entry is made again; a cache that
cannot be written costs time but never the result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configuration import digests, identity
from configuration.files import make_hidden, open_file, read_bytes, write_text
from configuration.folders import VARIABLE, cache_dir, locked

MANIFEST = "manifest.json"
_SCHEMA = 2

Arrays = dict[str, np.ndarray]


def cached(
    name: str,
    fingerprint: Mapping[str, Any],
    make: Callable[[], Arrays],
    sources: Sequence[Path] = (),
    read: Callable[[], Sequence[Path]] | None = None,
) -> Arrays:
    """Returns the arrays of `make`, from disk if an earlier process has made them.

    Args:
        name: any readable name for the entry.
        fingerprint: plain JSON values that determine the arrays and identify the entry.
        make: makes the arrays, none of dtype object, in one process at a time; if it
            raises, nothing is kept.
        sources: files that `make` reads, with different names. If the content of one
            differs, the arrays are made again.
        read: called after `make`, returns the sources that it did read; only their
            content is ever compared. None if `make` reads all of them.

    Returns:
        The arrays by name, read-only if they come from disk.
    """
    about = {"identity": fingerprint, "version": identity.version(identity.PACKAGE)}
    text = json.dumps([_SCHEMA, name, about], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    title = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-.") or "data"
    entry = cache_dir() / f"{title}-{digest[:16]}"
    key = json.loads(text)
    partial = read is not None
    with contextlib.suppress(_UnusableError):
        return _load(entry, key, sources, partial)
    with contextlib.ExitStack() as stack:
        try:
            lock = entry.with_name(f"{entry.name}.lock")
            stack.enter_context(locked(lock, wait=True))
            writable = True
        except OSError as error:
            _warn_unwritable(entry, error)
            writable = False
        try:
            # Another process may have made it while this one waited.
            return _load(entry, key, sources, partial)
        except _UnusableError as error:
            if error.args:
                warnings.warn(f"{error}: it is made again", stacklevel=2)
        before = {path: path.stat() for path in sources}
        arrays = make()
        if writable:
            used = sources if read is None else read()
            recorded = {path.name: _record(path, before[path]) for path in used}
            try:
                _write(entry, arrays, key, recorded)
            except OSError as error:
                _warn_unwritable(entry, error)
        return arrays


class _UnusableError(Exception):
    """An entry is absent (no arguments), or damaged or outdated (a reason)."""


def _load(
    entry: Path, key: list[Any], sources: Sequence[Path], partial: bool
) -> Arrays:
    """Reads and verifies an entry; with `partial`, unrecorded sources are ignored."""
    path = entry / MANIFEST
    try:
        manifest = json.loads(read_bytes(path))
        if manifest.pop("sha256") != digests.of_json(manifest):
            raise _UnusableError(f"{path} is damaged: its checksum differs")
        if [manifest["schema"], manifest["name"], manifest["fingerprint"]] != key:
            raise _UnusableError(f"{path} is damaged: it belongs to another entry")
        seen = manifest["sources"]
        for source in sources:
            if partial and source.name not in seen:
                continue
            if digests.of_file(source) != seen[source.name]:
                raise _UnusableError(f"{source} has changed since it was cached")
        arrays = {}
        for array, file in manifest["arrays"].items():
            path = entry / f"{array}.npy"
            if _digest(path) != file["sha256"]:
                raise _UnusableError(f"{path} is damaged: its checksum differs")
            arrays[array] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not entry.exists():
            raise _UnusableError from None
        raise _UnusableError(f"{error.filename} is missing") from None
    except _UnusableError:
        raise
    # Anything in the files may be missing or of another type.
    except Exception as error:
        raise _UnusableError(f"{path} is damaged: {error!r}") from None
    return arrays


def _record(path: Path, before: os.stat_result) -> str:
    """Returns the digest of a source that was read, given its state before that."""
    with contextlib.suppress(OSError):
        digest = digests.of_file(path)
        if digests.state(path.stat()) == digests.state(before):
            return digest
    return ""  # replaced while it was read: no file has this digest


def _write(
    entry: Path, arrays: Arrays, key: list[Any], sources: dict[str, str]
) -> None:
    """Writes an entry that appears as a whole; the caller holds the lock."""
    # Left by writers that died.
    for left in entry.parent.glob(f".{entry.name}-*"):
        _remove(left)
    temporary = make_hidden(entry)
    old = temporary.with_name(temporary.name + "-old")
    try:
        files = {}
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            files[name] = {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "sha256": _digest(path),
            }
        manifest: Any = dict(zip(("schema", "name", "fingerprint"), key, strict=True))
        _write_manifest(temporary, {**manifest, "sources": sources, "arrays": files})
        if entry.exists():
            os.rename(entry, old)
        os.rename(temporary, entry)
    finally:
        _remove(temporary)
        _remove(old)


def _remove(path: Path) -> None:
    """Removes a folder, or a file in its place."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    checked = {**manifest, "sha256": digests.of_json(manifest)}
    write_text(folder / MANIFEST, json.dumps(checked, indent=1))


def _warn_unwritable(entry: Path, error: OSError) -> None:
    warnings.warn(
        f"{entry.parent} cannot be written ({error.strerror or error}): the data is "
        f"not cached; set {VARIABLE} to a writable folder",
        stacklevel=3,
    )


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
