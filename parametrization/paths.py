"""Leaves of a tree by name, whatever the containers around them.

The parameters of one model come in several trees: Flax NNX hands an optimizer
variables, later their arrays; a base model of Equinox has other static fields; a
`FrozenDict` is thawed. The names on the way to a leaf stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

Names = tuple[str, ...]


def names_of(path: tuple[Any, ...]) -> Names:
    """Returns the names on a leaf's path, without the `.value` of a box around it."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def leaves_by_name(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> dict[Names, Any]:
    """Returns the leaves of a tree by `names_of` their paths.

    Raises:
        ValueError: if two leaves have one name, as below the keys 1 and "1".
    """
    found: dict[Names, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        if (names := names_of(path)) in found:
            raise ValueError(f"two parameters are called {written(names)}: rename one")
        found[names] = leaf
    return found


def written(names: Names) -> str:
    """Returns names as one path, such as `layers/0/kernel`."""
    return "/".join(names) or "/"
