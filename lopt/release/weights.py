"""θ as a flat mapping of paths `a/b/c` to float32 arrays, and its files.

Names, shapes, dtypes and finiteness of a file's tensors are checked before their use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from configuration import files
from lopt.base import LearnedOptimizer, Theta, first_difference

Tensors = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a nested dict by their paths.

    Raises:
        ValueError: if two leaves share a path, or a key is not a string.
    """
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str) or not key:
            raise ValueError(f"theta has the key {key!r} in {prefix!r}, must be a name")
        for name, leaf in flatten(value, f"{prefix}/{key}" if prefix else key).items():
            if name in leaves:
                raise ValueError(f"theta has two leaves of the name {name}")
            leaves[name] = leaf
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten`."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def expected_shapes(optimizer: LearnedOptimizer) -> dict[str, tuple[int, ...]]:
    """Returns paths and shapes of an optimizer's θ without computing it."""
    theta = jax.eval_shape(optimizer.init, jax.random.key(0))
    return {name: leaf.shape for name, leaf in flatten(theta).items()}


def check_theta(optimizer: LearnedOptimizer, theta: Theta) -> Tensors:
    """Returns θ by paths, as float32.

    Raises:
        ValueError: naming a leaf that does not fit the optimizer or is not finite.
    """
    leaves = flatten(theta)
    wanted = jax.eval_shape(optimizer.init, jax.random.key(0))
    if differs := first_difference(_shapes(theta), _shapes(wanted)):
        name, here, there = differs
        raise ValueError(
            f"theta does not belong to {optimizer}: theta{name} is {here} and must be "
            f"{there}"
        )
    tensors = {}
    for name in flatten(wanted):
        tensors[name] = np.array(leaves[name], np.float32, order="C")
        if not np.all(np.isfinite(tensors[name])):
            raise ValueError(f"theta is not finite in {name}; nothing was written")
    return tensors


def _shapes(tree: Any) -> Any:
    """Replaces leaves by their shapes; dtypes may differ, since files hold float32."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.float32), tree)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: naming the file, if it does not hold one.
    """
    try:
        config = json.loads(files.read_text(path), parse_constant=_refuse_constant)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object")
    return config


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def read(path: Path) -> Tensors:
    """Reads a safetensors file.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    try:
        return load(files.read_bytes(path, files.WEIGHTS_LIMIT))
    except OSError as error:
        reason = error.strerror
        raise ValueError(f"{path} cannot be read as safetensors: {reason}") from None
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as safetensors: {line}") from None


def check(tensors: Mapping[str, np.ndarray], shapes: Shapes, where: object) -> None:
    """Checks that there are exactly these tensors, float32 and finite.

    Raises:
        ValueError: naming `where` (a file) and the first tensor that is wrong.
    """
    if missing := [name for name in shapes if name not in tensors]:
        raise ValueError(f"{where} lacks the tensor {missing[0]}")
    for name, shape in shapes.items():
        value = tensors[name]
        if value.shape != shape or value.dtype != np.float32:
            raise ValueError(
                f"{where}: {name} is {value.dtype} of shape {value.shape}, must be "
                f"float32 of shape {shape}"
            )
        if not np.all(np.isfinite(value)):
            raise ValueError(f"{where}: {name} holds values that are not finite")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ValueError(f"{where} holds unknown tensors: {unknown}")


def as_theta(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns θ from tensors by their paths."""
    return unflatten({name: jnp.asarray(x, jnp.float32) for name, x in tensors.items()})
