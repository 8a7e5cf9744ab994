"""What keeps a rule that couples tensors finite when one gradient is not.

Where tensors talk to each other (a shared clip, a mean or maximum over tensors), one
infinite or undefined entry would reach all of them. Such rules pass every gradient
through `bounded` before anything else: entries are clipped to ± a bound, which the
original rules do too, and an entry that is not a number counts as no gradient. On
finite gradients within the bound it is the identity. A rule that treats each tensor by
itself has no need of it and shows what it was given.

The loss is shared by all tensors as well: whoever averages it leaves out values that
are not finite.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

GRADIENT_BOUND = 1000.0
"""Entries of gradients are clipped to ± this by NNAdam, VeLO, Celo and CELO2."""


def finite(values: jax.Array) -> jax.Array:
    """What is said of tensors to each other: 0 where a tensor's is not finite.

    A tensor that is spoilt (a parameter of 10³⁰ has an infinite mean square) shows it
    in its own steps; the others only no longer hear of it.
    """
    return jnp.where(jnp.isfinite(values), values, jnp.zeros_like(values))


def bounded(grad: jax.Array, bound: float | jax.Array) -> jax.Array:
    """The gradient with entries in [−bound, bound], and 0 where it was undefined."""
    clipped = jnp.clip(grad, -bound, bound)
    return jnp.where(jnp.isnan(grad), jnp.zeros_like(grad), clipped)
