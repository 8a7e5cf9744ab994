"""Parts of θ, and those that a phase of meta-training does not learn.

A part is a path into θ: "rule", or "rule/layer_0". An optimizer names its frozen parts
by a property `frozen` (Celo's rule, while its scheduler is learned), a run by a field
of its outer optimizer. Frozen parts are neither perturbed, so they add no variance, nor
moved, not even by weight decay.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from lopt.base import Theta


def leaves_under(theta: Theta, path: str, field: str) -> list[bool]:
    """Returns which leaves of θ lie at or below a path of names, by dots or slashes.

    Raises:
        ValueError: naming the field that the path is from, if no leaf does.
    """
    leaves = jax.tree_util.tree_leaves_with_path(theta)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    prefix = "/".join(re.split(r"[./]", path))
    under = [n == prefix or n.startswith(f"{prefix}/") for n in names]
    if not any(under):
        raise ValueError(
            f"{field}: theta has no part {path!r}; it has {', '.join(names)}"
        )
    return under


def keep_frozen(changes: Theta, parts: tuple[str, ...]) -> Theta:
    """Returns changes of θ with zeros where θ is frozen.

    Raises:
        ValueError: if θ has no such part.
    """
    leaves, structure = jax.tree.flatten(changes)
    for part in parts:
        under = leaves_under(changes, part, "frozen")
        pairs = zip(under, leaves, strict=True)
        leaves = [jnp.zeros_like(x) if still else x for still, x in pairs]
    return structure.unflatten(leaves)
