"""Labels that are wrong, always the same ones: a hash of the example decides.

Real label noise belongs to the data: an example that is labelled wrongly is so in
every epoch, and a network can learn it by heart. Nothing has to be stored for that:
whether an example is concerned, and which label it has instead, are two hashes of its
row.
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
    """Labels, a share of them replaced by another one, all others equally likely.

    Args:
        labels: `[...]` int32 in 0…`num_labels`-1.
        rows: `[...]` int32: which examples these are.
        num_labels: how many there are, at least 2.
        share: `[]` of the labels that are replaced on average.
        seed: `[]` uint32.

    Returns:
        `[...]` int32.
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
    """A bijection of uint32 that mixes all bits (the last step of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
