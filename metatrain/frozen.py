"""Parts of θ that a phase of meta-training does not learn.

An optimizer may say so by a property `frozen`, names at the top level of its θ (Celo's
rule, while its scheduler is learned). Those parts are neither perturbed, so that they
add no variance, nor moved, by weight decay either.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lopt.base import Theta


def frozen_parts(lopt: Any) -> tuple[str, ...]:
    """Names of what is frozen at the top level of θ; most optimizers have none."""
    return tuple(getattr(lopt, "frozen", ()))


def keep_frozen(changes: Theta, parts: tuple[str, ...]) -> Theta:
    """Changes of θ with zeros where θ is frozen.

    Raises:
        ValueError: if θ has no such part.
    """
    for part in parts:
        if part not in changes:
            raise ValueError(f"frozen = {parts}: theta has no part {part!r}")
    return (
        {
            name: jax.tree.map(jnp.zeros_like, part) if name in parts else part
            for name, part in changes.items()
        }
        if parts
        else changes
    )
