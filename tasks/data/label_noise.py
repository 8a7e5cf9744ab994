"""Label noise that is fixed per example, so that a network can memorize it.

Nothing is stored: whether an example is mislabelled, and with which label, are two
hashes of its row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def corrupt(
    labels: jax.Array,
    rows: jax.Array,
    num_labels: int,
    share: jax.Array,
    seed: jax.Array,
) -> jax.Array:
    """Replaces a share of the labels by another one, all others equally likely.

    Args:
        labels: `[...]` int32 in 0…`num_labels`-1.
        rows: `[...]` int32, the rows of the examples.
        num_labels: number of labels, at least 2.
        share: `[]`, expected share of replaced labels.
        seed: `[]` uint32.
    """
    if num_labels < 2:
        raise ValueError(f"num_labels = {num_labels}: there is no other label")
    first = _mixed(rows.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + seed)
    second = _mixed(first + jnp.uint32(0x7F4A7C15))
    # 24 bits are exact in float32.
    chosen = (first >> 8).astype(jnp.float32) * 2.0**-24 < share
    away = 1 + (second % jnp.uint32(num_labels - 1)).astype(jnp.int32)
    return jnp.where(chosen, (labels + away) % num_labels, labels)


def _mixed(x: jax.Array) -> jax.Array:
    """Mixes all bits of a uint32, bijectively (the last step of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
