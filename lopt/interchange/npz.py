"""Nested dicts of arrays in NumPy's npz form, by paths `a/b`; nothing is unpickled."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from configuration import files
from lopt.release import weights

SUFFIX = ".npz"
"""Ending of the name of such a file."""

_NOT_UNDERSTOOD = (
    *(ValueError, TypeError, KeyError, AttributeError, EOFError, OverflowError),
    # Of an array whose name is also a part of another's path.
    IndexError,
    *(zipfile.BadZipFile, zlib.error, SyntaxError, NotImplementedError, MemoryError),
    # Of encrypted entries.
    RuntimeError,
)


def read_tree(path: str | Path) -> dict[str, Any]:
    """Reads the nested dict of a file, unchecked.

    Raises:
        ValueError: in one line, if the file holds none, or more than a gigabyte.
    """
    path = Path(path)
    try:
        content = io.BytesIO(files.read_bytes(path, files.WEIGHTS_LIMIT))
        with zipfile.ZipFile(content) as archive:
            # A few bytes may stand for gigabytes.
            size = sum(entry.file_size for entry in archive.infolist())
        if size > files.WEIGHTS_LIMIT:
            raise ValueError(f"its arrays have {size:,} bytes")
        with np.load(content, allow_pickle=False) as arrays:
            return weights.unflatten({name: arrays[name] for name in arrays.files})
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{path} cannot be read: {reason}") from None
    except _NOT_UNDERSTOOD as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as npz: {line}") from None
