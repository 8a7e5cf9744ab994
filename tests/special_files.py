"""What may lie in the place of a file, and must be neither waited for nor read."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def _bind(path: Path) -> None:
    # A socket's path has at most 108 bytes.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 * 10**9)


SPECIAL = {
    "FIFO": os.mkfifo,
    "socket": _bind,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}
"""By the word of messages, functions that put it at a path."""
TOO_LARGE = {"3,000,000,000 bytes": _sparse}


def put(path: Path, kind: str) -> None:
    """Replaces a file by something else."""
    path.unlink(missing_ok=True)
    (SPECIAL | TOO_LARGE)[kind](path)
