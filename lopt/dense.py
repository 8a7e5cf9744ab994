"""Dense layers as dicts of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Layer = dict[str, jax.Array]


def init(
    key: jax.Array, num_inputs: int, num_outputs: int, scale: float = 1.0
) -> Layer:
    """Draws haiku's truncated normal (cut at 2σ, σ = scale/√inputs) and a zero bias.

    Returns:
        `{"kernel": [in, out], "bias": [out]}`.
    """
    normal = jax.random.truncated_normal(key, -2.0, 2.0, (num_inputs, num_outputs))
    return {
        "kernel": scale * normal / jnp.sqrt(num_inputs),
        "bias": jnp.zeros(num_outputs),
    }


def apply(layer: Layer, inputs: jax.Array) -> jax.Array:
    """Maps inputs `[..., in]` to `[..., out]`."""
    product = inputs @ layer["kernel"]
    return product + jnp.broadcast_to(layer["bias"], product.shape)
