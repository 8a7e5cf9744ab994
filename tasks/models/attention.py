"""Multi-head self-attention and rotary positions.

Query times key is divided by √d in the standard parametrization and by d in μP: as
training aligns the two, their product grows as d (`Rules.attention_scale`).

Query, key and value have no bias. A softmax does not depend on a key's bias, whose
gradient would be rounding error that a normalizing optimizer turns into full steps; a
value's bias duplicates that of the output.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from tasks.models.base import record
from tasks.models.layers import Dense

ROTARY_BASE = 10_000.0
"""The slowest pair of coordinates turns by about 1/ROTARY_BASE radians per token."""


class Attention(nn.Module):
    """Self-attention among the tokens of a sequence.

    `scale` is the factor on query times key; `causal` hides later tokens; `rotary`
    turns queries and keys by their positions.
    """

    heads: int
    head_dim: int
    scale: float
    causal: bool = False
    rotary: bool = False
    depth_mult: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, L, width]` to `[B, L, width]`."""
        width, mult = x.shape[-1], self.depth_mult
        heads = (self.heads, self.head_dim), "width", "heads head_dim"
        query, key, value = (
            Dense(*heads, use_bias=False, depth_mult=mult, name=name)(x)
            for name in ("query", "key", "value")
        )
        if self.rotary:
            places = jnp.arange(x.shape[1])
            query, key = rotate(query, places), rotate(key, places)
        logits = self.scale * jnp.einsum("bihd,bjhd->bhij", query, key)
        # Recorded before the mask, whose infinities do not scale.
        record(self, "logits", logits)
        if self.causal:
            logits = hide_later(logits)
        weights = jax.nn.softmax(logits, axis=-1)
        mixed = record(self, "mixed", jnp.einsum("bhij,bjhd->bihd", weights, value))
        return Dense(width, "heads head_dim", depth_mult=mult, name="out")(mixed)


def hide_later(logits: jax.Array) -> jax.Array:
    """Sets logits `[..., L, L]` of query i and key j > i to minus infinity.

    Weights there, and gradients through them, are exactly 0.
    """
    visible = jnp.tril(jnp.ones(logits.shape[-2:], bool))
    return jnp.where(jnp.broadcast_to(visible, logits.shape), logits, -jnp.inf)


def rotate(x: jax.Array, places: jax.Array) -> jax.Array:
    """Applies rotary positions (Su et al., RoFormer, arXiv:2104.09864, eq. 34).

    Coordinates k and k + d/2 of a head are a pair, turned at position m by the angle
    m · ROTARY_BASE^(-2k/d), so query times key depends on the difference of positions.
    (The paper pairs neighbours, which is the same up to a permutation.)

    Args:
        x: queries or keys, `[B, L, heads, d]`, d even.
        places: positions in the sequence, `[L]`.
    """
    half = x.shape[-1] // 2
    speeds = ROTARY_BASE ** (-jnp.arange(half) / half)
    angles = jnp.outer(places, speeds).reshape(1, places.shape[0], 1, half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half], x[..., half:]
    turned = (first * cos - second * sin, first * sin + second * cos)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
