"""Parts of θ that a phase of meta-training does not learn.

An optimizer may say so by a property `frozen`, names at the top level of its θ (Celo's
rule, while its scheduler is learned). Those parts are neither perturbed, so that they
add no variance, nor moved, by weight decay either.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lopt.base import Theta


def keep_frozen(changes: Theta, parts: tuple[str, ...]) -> Theta:
    """Changes of θ with zeros where θ is frozen.

    Raises:
        ValueError: if θ has no such part.
    """
    if not parts:
        return changes
    for part in parts:
        if part not in changes:
            raise ValueError(f"frozen = {parts}: theta has no part {part!r}")
    still = {part: jax.tree.map(jnp.zeros_like, changes[part]) for part in parts}
    return changes | still
