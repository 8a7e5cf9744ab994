"""Clipping, so that one bad entry of a gradient spoils nothing else.

Where tensors exchange information (a shared clip, a mean or maximum over tensors), one
entry that is infinite or NaN would reach all of them. Such rules pass every gradient
through `bounded` first, and what tensors exchange through `finite`; the loss, which all
tensors share, is averaged without values that are not finite. A rule that treats each
tensor by itself needs none of this.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

GRADIENT_BOUND = 1000.0
"""Entries of gradients are clipped to ± this by NNAdam, VeLO, Celo and CELO2."""


def bounded(grad: jax.Array, bound: float | jax.Array) -> jax.Array:
    """Clips entries to [−bound, bound]; NaN becomes 0."""
    clipped = jnp.clip(grad, -bound, bound)
    return jnp.where(jnp.isnan(grad), jnp.zeros_like(grad), clipped)


def finite(values: jax.Array) -> jax.Array:
    """Replaces what is not finite by 0, before tensors exchange it.

    The tensor itself keeps such values: its own steps show them.
    """
    return jnp.where(jnp.isfinite(values), values, jnp.zeros_like(values))


def root(x: jax.Array) -> jax.Array:
    """Returns √x, with derivative 0 instead of infinity at 0."""
    return jnp.where(x == 0, 0.0, jnp.sqrt(jnp.where(x == 0, 1.0, x)))


LARGEST_SLOPE = 1e36
"""Slope of a reciprocal root beyond which it counts as a constant."""


@jax.custom_jvp
def reciprocal_root(x: jax.Array) -> jax.Array:
    """Returns 1/√x; its derivative is 0 where float32 cannot hold it, at tiny floors.

    There a moment is its floor: the derivative is multiplied by that of the moment,
    which is 0, and infinity times 0 is NaN.
    """
    return jax.lax.rsqrt(x)


@reciprocal_root.defjvp
def _reciprocal_root_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (change,) = primals, tangents
    value = jax.lax.rsqrt(x)
    slope = -0.5 * (value / x)
    slope = jnp.where(jnp.abs(slope) < LARGEST_SLOPE, slope, jnp.zeros_like(slope))
    return value, change * slope


def clip_global_norm(max_norm: float | None) -> optax.GradientTransformation:
    """Shrinks a gradient to a norm of at most `max_norm`; None leaves it as it is.

    The norm is that over all tensors, computed in float32 at least. Where it is not
    finite there is no direction to keep, and the gradient becomes zero. Finite
    gradients are clipped as by `optax.clip_by_global_norm`.
    """
    if max_norm is None:
        return optax.identity()

    def clip(updates: optax.Updates, params: optax.Params | None = None) -> Any:
        del params
        if not jax.tree.leaves(updates):
            return updates
        norm = root(optax.tree.norm(jax.tree.map(_widen, updates), squared=True))

        def one(grad: jax.Array) -> jax.Array:
            wide = _widen(grad)
            clipped = wide / norm.astype(wide.dtype) * max_norm
            kept = jnp.where(norm < max_norm, wide, clipped)
            return jnp.where(jnp.isfinite(norm), kept, 0.0).astype(grad.dtype)

        return jax.tree.map(one, updates)

    return optax.stateless(clip)


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
