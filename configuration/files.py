"""Files and folders that appear as a whole or not at all, with checksums.

Neither safetensors nor orbax notices a flipped byte, so every published folder carries
`SHA256SUMS` in the format of `sha256sum -c`, and readers check it first.

A folder is written under a hidden name and renamed. A folder that it replaces is hidden
by another rename before that; if the process is killed between the two, `recover`
brings it back.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

SUMS = "SHA256SUMS"
_OLD = "-old"
HIDDEN = re.compile(rf"\.(?P<name>.+)-[a-z0-9_]{{8}}(?P<old>{_OLD})?")
"""Hidden names of folders being written, and of those being replaced (`old`)."""


def write_sums(folder: Path) -> None:
    """Writes `SHA256SUMS` over every file below `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{_digest(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    (folder / SUMS).write_text("".join(lines))


def verify_sums(folder: Path, required: Collection[str]) -> None:
    """Checks every file that `SHA256SUMS` lists; other files are ignored.

    Args:
        folder: the folder.
        required: files that must be listed.

    Raises:
        ValueError: naming the first file that is missing, changed or not listed.
        OSError: if a file cannot be read.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise ValueError(f"{sums} is missing: the folder is incomplete")
    listed = set()
    # After the last newline nothing may follow: the file was cut off.
    *lines, rest = sums.read_text(errors="replace").split("\n")
    for line in [*lines, rest] if rest else lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        whole = line is not rest and len(digest) == 64 and name
        if not whole or Path(name).is_absolute() or ".." in name:
            raise ValueError(f"{sums} is damaged at the line {line!r}")
        if not path.is_file():
            raise ValueError(f"{path} is missing, though {SUMS} lists it")
        if _digest(path) != digest:
            raise ValueError(f"{path} is damaged: its checksum is not that of {SUMS}")
        listed.add(name)
    for name in required:
        if name not in listed:
            raise ValueError(f"{folder / name} is not listed in {SUMS}")


def publish(
    folder: Path, write: Callable[[Path], None], *, replace: bool = False
) -> None:
    """Makes `folder` appear at once, complete and with checksums.

    Args:
        folder: the folder.
        write: fills the temporary folder that it is given.
        replace: replaces an existing folder once the new one is complete.

    Raises:
        FileExistsError: if `folder` exists and `replace` is false, or it was not
            published.
        OSError: naming the folder, if it cannot be written; the old one stays.
    """
    if os.path.lexists(folder):
        if not replace:
            raise FileExistsError(f"{folder} exists already")
        if folder.is_symlink() or not (folder / SUMS).is_file():
            raise FileExistsError(
                f"{folder} is no folder with {SUMS}: it is not replaced; move it away"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _naming(folder):
            write(temporary)
            write_sums(temporary)
            _make_durable(temporary)
            _take_place(folder, temporary, replace=replace)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _take_place(folder: Path, temporary: Path, *, replace: bool) -> None:
    """Renames the complete folder."""
    old = temporary.with_name(temporary.name + _OLD)
    if replace and folder.exists():
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except BaseException as error:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        elif isinstance(error, OSError) and os.path.lexists(folder):
            # Another process was quicker; a rename never replaces a filled folder.
            raise FileExistsError(f"{folder} exists already") from None
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Cleans up after a killed `publish` of this folder.

    Restores the replaced folder, unless the new one is there, and removes unfinished
    ones. No other process may be publishing this folder.
    """
    for left in sorted(folder.parent.glob(f".{glob.escape(folder.name)}-*")):
        match = HIDDEN.fullmatch(left.name)
        if not match or match["name"] != folder.name:
            continue
        if match["old"] and not os.path.lexists(folder):
            os.rename(left, folder)
        else:
            discard(left)


def discard(path: Path) -> None:
    """Removes a folder, or a link; a kill leaves no part of it under its name.

    Files that cannot be deleted stay, hidden.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    if not HIDDEN.fullmatch(path.name):
        aside = tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent)
        # A rename replaces an empty folder.
        os.rename(path, aside)
        path = Path(aside)
    shutil.rmtree(path, ignore_errors=True)


def is_ours(folder: Path, unsafe: int) -> bool:
    """Whether a path is a folder of this user, no link, without the `unsafe` rights."""
    found = folder.lstat()
    owned = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return owned and not found.st_mode & unsafe


def write_text(path: str | Path, text: str) -> None:
    """Writes a text as `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file as a whole or not at all, creating its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}-"
    handle, temporary = tempfile.mkstemp(".tmp", prefix, path.parent)
    try:
        with _naming(path), os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _make_durable(folder: Path) -> None:
    """Syncs all files of a folder to disk, readable by everyone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
        _sync(path)
    folder.chmod(0o755)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # Some file systems cannot sync folders.
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the path to an `OSError` without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
