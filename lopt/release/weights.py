"""θ as a flat mapping of names to float32 arrays, and its file.

θ is a nested dict; in a file the names of its leaves are their paths, `a/b/c`. Whatever
comes out of a file is checked against what is expected, name by name, before it is
used: shape, dtype, and that every value is finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lopt.base import LearnedOptimizer, Theta, first_difference

Tensors = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested dict by their paths.

    Raises:
        ValueError: if two leaves have the same path, or a key is no text.
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
    """The nested dict of leaves by their paths."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def expected_shapes(optimizer: LearnedOptimizer) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an optimizer's θ; computes nothing."""
    theta = jax.eval_shape(optimizer.init, jax.random.key(0))
    return {name: leaf.shape for name, leaf in flatten(theta).items()}


def check_theta(optimizer: LearnedOptimizer, theta: Theta) -> Tensors:
    """θ by names, as float32.

    Raises:
        ValueError: if its tree or its shapes are not those of the optimizer's own θ, or
            if it is not finite.
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
    """The leaves' shapes; their dtype does not matter, since files hold float32."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.float32), tree)


def read(path: Path) -> Tensors:
    """The tensors of a safetensors file.

    Raises:
        ValueError: naming the file, if it is none.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as safetensors: {line}") from None


def check(tensors: Mapping[str, np.ndarray], shapes: Shapes, where: object) -> None:
    """Exactly these tensors, float32 and finite.

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
    """θ of tensors by their paths."""
    return unflatten({name: jnp.asarray(x, jnp.float32) for name, x in tensors.items()})
