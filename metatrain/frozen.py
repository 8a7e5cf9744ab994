"""Parts of θ that a phase of meta-training does not learn.

An optimizer names them by a property `frozen` (Celo's rule, while its scheduler is
learned), a run by a field of its outer optimizer. A part is a path into θ: "rule", or
"rule/layer_0". Frozen parts are neither perturbed, so they add no variance, nor moved,
not even by weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lopt.base import Theta


def keep_frozen(changes: Theta, parts: tuple[str, ...]) -> Theta:
    """Returns changes of θ with zeros where θ is frozen.

    Raises:
        ValueError: if θ has no such part.
    """
    for part in parts:
        changes = _without(changes, part.split("/"), part)
    return changes


def _without(changes: Theta, path: list[str], part: str) -> Theta:
    name, *rest = path
    if not isinstance(changes, Mapping) or name not in changes:
        known = ", ".join(map(str, changes)) if isinstance(changes, Mapping) else "none"
        raise ValueError(
            f"frozen: theta has no part {part!r}; where {name!r} is looked for it has "
            f"{known}"
        )
    below = changes[name]
    still = _without(below, rest, part) if rest else jax.tree.map(jnp.zeros_like, below)
    return {**changes, name: still}
