"""Trees of arrays in the msgpack form of flax, without running anything in them.

msgpack holds data only; flax adds arrays to it. What is read is a nested dict of arrays
and nothing else: any other value is refused by its name. Dicts may be those of tuples
or records, whose keys flax writes as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization

from lopt.release import weights
from lopt.release.weights import Tensors

_NOT_UNDERSTOOD = (
    *(ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError),
    *(RecursionError, SyntaxError),  # numpy parses names of dtypes
)


def read_tree(path: str | Path) -> dict[str, Any]:
    """The nested dict that a file holds, unchecked.

    Raises:
        ValueError: in one line, if it cannot be read as that.
    """
    path = Path(path)
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except _NOT_UNDERSTOOD as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as msgpack: {line}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no dict of arrays, but {type(tree).__name__}")
    return tree


def arrays(tree: Any, where: object) -> Tensors:
    """The arrays of a tree by their paths, as float32.

    Raises:
        ValueError: naming the value that is no array of finite floats.
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
