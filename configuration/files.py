"""Files and folders that appear as a whole or not at all, with checksums.

Neither safetensors nor orbax notices a flipped byte, so every published folder carries
`SHA256SUMS` in the format of `sha256sum -c`, and readers check it first.

A folder is written under a hidden name and renamed. A folder that it replaces is hidden
by another rename before that; if the process is killed between the two, `recover`
brings it back.

Files that a user could hand in are opened by `open_file` alone: a FIFO would be waited
for, a device never ends, and a large sparse file would fill the memory.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

TEXT_LIMIT = 16 * 2**20
"""Most bytes of a configuration, a list of checksums and the like."""
WEIGHTS_LIMIT = 2**30
"""Most bytes of an optimizer's weights."""

SUMS = "SHA256SUMS"
_OLD = "-old"
HIDDEN = re.compile(rf"\.(?P<name>.+)-[a-z0-9_]{{8}}(?P<old>{_OLD})?")
"""Hidden names of folders being written, and of those being replaced (`old`)."""
_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def open_file(
    path: str | Path, limit: int | None = None, *, follow: bool = True
) -> BufferedReader:
    """Opens a regular file for reading; nothing else is waited for or read.

    Args:
        path: the file.
        limit: most bytes that it may have; None for any number.
        follow: whether it may be a link to a regular file.

    Raises:
        OSError: naming the path, if it is no regular file, larger than the limit, or
            cannot be read.
    """
    # Before it is opened, since that alone may act on a device.
    _check_regular(path, os.stat(path, follow_symlinks=follow))
    more = os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    file = open(  # noqa: SIM115 (the caller closes it)
        path, "rb", opener=lambda name, flags: os.open(name, flags | more)
    )
    try:
        found = os.fstat(file.fileno())
        _check_regular(path, found)
        if limit is not None and found.st_size > limit:
            reason = f"has {found.st_size:,} bytes, at most {limit:,} are read"
            raise OSError(errno.EFBIG, reason, str(path))
    except BaseException:
        file.close()
        raise
    return file


def own_file(path: str, flags: int) -> int:
    """Opens a regular file for writing, and no link, which could lead elsewhere.

    It is an `opener` of `open`.

    Raises:
        OSError: naming the path, if something else is there or it cannot be opened.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_regular(path, os.lstat(path))
    # Not blocking: a FIFO may have taken its place.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    handle = os.open(path, flags, 0o666)
    try:
        _check_regular(path, os.fstat(handle))
        os.set_blocking(handle, True)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_regular(path: str | Path, found: os.stat_result) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        number = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        what = _KINDS.get(kind, "special file")
        raise OSError(number, f"is a {what}, not a file", str(path))


def read_bytes(path: str | Path, limit: int = TEXT_LIMIT) -> bytes:
    """Reads a regular file as a whole (arguments and errors as `open_file`)."""
    with open_file(path, limit) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
    if len(content) != size:
        raise OSError(errno.EIO, "changed while it was read", str(path))
    return content


def read_text(path: str | Path, limit: int = TEXT_LIMIT) -> str:
    """Reads a regular file in UTF-8, whatever the locale (errors as `open_file`).

    Raises:
        UnicodeDecodeError: a ValueError, if it is not UTF-8.
    """
    return read_bytes(path, limit).decode()


def write_sums(folder: Path) -> None:
    """Writes `SHA256SUMS` over every file below `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{_digest(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def verify_sums(
    folder: Path,
    required: Collection[str],
    limit: Callable[[str], int | None] = lambda name: None,
) -> None:
    """Checks every file that `SHA256SUMS` lists; other files are ignored.

    Args:
        folder: the folder.
        required: files that must be listed.
        limit: returns the most bytes that a file of this name may have, or None.

    Raises:
        ValueError: naming the first file that is missing, changed or not listed.
        OSError: if a file cannot be read, is no regular file, or is too large.
    """
    sums = folder / SUMS
    try:
        text = read_bytes(sums).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{sums} is missing: the folder is incomplete") from None
    listed = set()
    # After the last newline nothing may follow: the file was cut off.
    *lines, rest = text.split("\n")
    for line in [*lines, rest] if rest else lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        whole = line is not rest and len(digest) == 64 and name and "\0" not in name
        if not whole or name in listed or Path(name).is_absolute() or ".." in name:
            raise ValueError(f"{sums} is damaged at the line {line!r:.100}")
        try:
            found = _digest(path, limit(name))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{path} is missing, though {SUMS} lists it") from None
        if found != digest:
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
    temporary = make_hidden(folder)
    try:
        with _naming(folder):
            write(temporary)
            write_sums(temporary)
            _make_durable(temporary)
            _take_place(folder, temporary, replace=replace)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def make_hidden(folder: Path) -> Path:
    """Makes an empty folder beside this one, under a hidden name."""
    path = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    path.mkdir()
    return path


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
        aside = make_hidden(path)
        # A rename replaces an empty folder.
        os.rename(path, aside)
        path = aside
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
    with replacing(Path(path)) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of this one once it is complete.

    If the block fails, the old one stays. Creates the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    try:
        with _naming(path), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _make_durable(folder: Path) -> None:
    """Syncs all files of a folder to disk, with the rights that the umask leaves."""
    # Those of the folder itself, which was made with all of them.
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        _sync(path)
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


def _digest(path: Path, limit: int | None = None) -> str:
    with open_file(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
