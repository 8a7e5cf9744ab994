"""Clipping the norm of a whole gradient, so that one bad entry spoils nothing else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def clipping(max_norm: float | None) -> optax.GradientTransformation:
    """Shrinks a gradient to a norm of at most `max_norm`; None leaves it as it is.

    The norm is that over all tensors, computed in float32 at least. Where it is not
    finite there is no direction to keep, and the gradient counts as zero. Finite
    gradients are clipped as by `optax.clip_by_global_norm`.
    """
    if max_norm is None:
        return optax.identity()

    def clip(updates: optax.Updates, params: optax.Params | None = None) -> Any:
        del params
        if not jax.tree.leaves(updates):
            return updates
        norm = optax.tree.norm(jax.tree.map(_widen, updates))

        def one(grad: jax.Array) -> jax.Array:
            wide = _widen(grad)
            clipped = wide / norm.astype(wide.dtype) * max_norm
            kept = jnp.where(norm < max_norm, wide, clipped)
            return jnp.where(jnp.isfinite(norm), kept, 0.0).astype(grad.dtype)

        return jax.tree.map(one, updates)

    return optax.stateless(clip)


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
