"""Nested dicts of arrays in flax's msgpack form, which holds data and no code.

Dicts may stand for tuples or records, whose keys flax writes as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization

from configuration import files
from lopt.release import weights
from lopt.release.weights import Tensors

_NOT_UNDERSTOOD = (
    *(ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError),
    # SyntaxError: numpy parses names of dtypes.
    *(RecursionError, SyntaxError),
)


def read_tree(path: str | Path) -> dict[str, Any]:
    """Reads the nested dict of a file, unchecked.

    Raises:
        ValueError: in one line, if the file holds none.
    """
    path = Path(path)
    try:
        content = files.read_bytes(path, files.WEIGHTS_LIMIT)
        tree = serialization.msgpack_restore(content)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except _NOT_UNDERSTOOD as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as msgpack: {line}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no dict of arrays, but {type(tree).__name__}")
    return tree


def arrays(tree: Any, where: object) -> Tensors:
    """Returns the arrays of a tree by their paths, as float32.

    Raises:
        ValueError: naming a value that is no array of finite floats.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} holds no dict of arrays, but {type(tree).__name__}")
    try:
        leaves = weights.flatten(tree)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    tensors = {}
    for name, leaf in leaves.items():
        if not isinstance(leaf, np.ndarray | np.floating):
            kind = type(leaf).__name__
            raise ValueError(f"{where}: {name} is no array, but of type {kind}")
        if not np.issubdtype(leaf.dtype, np.floating):
            raise ValueError(f"{where}: {name} is {leaf.dtype}, must be of floats")
        tensors[name] = np.asarray(leaf, np.float32)
        if not np.all(np.isfinite(tensors[name])):
            raise ValueError(f"{where}: {name} holds values that are not finite")
    return tensors
