"""The folder of all caches, and locks that end with their process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from configuration.files import own_file

VARIABLE = "METATRAIN_CACHE_DIR"


def cache_dir() -> Path:
    """Returns the folder of all caches, which need not exist."""
    if given := os.environ.get(VARIABLE):
        return Path(os.path.expanduser(given))  # keeps an unknown ~user
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(home)) / "metatrain"


@contextlib.contextmanager
def locked(
    path: Path, *, wait: bool, waiting: Callable[[str], None] = lambda owner: None
) -> Iterator[None]:
    """Holds a lock file, of whose content the holder is told, while the block runs.

    Args:
        path: the lock file; it and its folder are created.
        wait: until no other process holds it; else that is an error.
        waiting: called before a wait, with process and host of the holder.

    Raises:
        BlockingIOError: if another process holds it; the message says which.
        OSError: if it cannot be written, is no file, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = own_file(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    with os.fdopen(handle, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                what = f"{error.strerror}; its file system may have no locks"
                raise OSError(error.errno, what, str(path)) from None
            owner = file.read(200).decode(errors="replace").strip() or "unknown"
            if not wait:
                number, what = errno.EWOULDBLOCK, f"is in use by process {owner}"
                raise BlockingIOError(number, what, str(path.parent)) from None
            waiting(owner)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()
        yield
