"""The decoder-only transformer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from tasks.models.base import record
from tasks.models.blocks import BlockModel, Residual
from tasks.models.layers import Embedding, Norm, lookup, readout

Positions = Literal["learned", "rotary"]
Readout = Literal["untied", "tied"]


@final
@configuration
class Transformer(BlockModel):
    """A causal language model.

    In shapes, `L` is the length of a sequence and `V` the size of the vocabulary.
    """

    positions: Positions = "learned"
    """A table with a vector per position, or rotated queries and keys."""
    readout: Readout = "untied"
    """Either a layer (see `readout_init`), or the embedding table again."""

    input_dtype: ClassVar[Any] = jnp.int32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.readout == "tied" and self.readout_init != "zero":
            raise ValueError(
                f"readout_init = {self.readout_init!r} must be 'zero' with a tied "
                "readout, which is the embedding table and starts as that does"
            )
        for name in ("head_dim", "base_head_dim"):
            if self.positions == "rotary" and getattr(self, name) % 2:
                raise ValueError(
                    f"{name} = {getattr(self, name)} must be even: rotary positions "
                    "turn pairs of coordinates"
                )

    def forward(
        self, module: nn.Module, tokens: jax.Array, num_outputs: int
    ) -> jax.Array:
        """Maps tokens `[B, L]` below `num_outputs` to logits `[B, L, num_outputs]`."""
        if tokens.ndim != 2:
            raise ValueError(f"inputs of shape {tokens.shape} must be tokens [B, L]")
        tied = self.readout == "tied"
        # A tied table cannot start at zero: its first logits have size 1/4 at the base
        # width. Rows that are looked up are scaled back to size 1.
        size = 0.25 * self.base_width**-0.5 if tied else 1.0
        table = Embedding(num_outputs, self.width, std=size, name="embedding")()
        x = lookup(table, tokens) / size
        if self.positions == "learned":
            places = Embedding(x.shape[1], self.width, "positions", name="positions")
            x = x + jnp.broadcast_to(places(), x.shape)
        record(module, "embedded", x)
        rotary = self.positions == "rotary"
        x = Residual(self, causal=True, rotary=rotary, name="residual")(x)
        x = Norm(name="norm")(x)
        if tied:
            scale = self.rules.forward_scale(self.width, self.base_width)
            return TiedReadout(scale, name="readout")(x, table)
        return readout(self, num_outputs, fan_out="vocab")(x)


class TiedReadout(nn.Module):
    """The embedding table as a readout: `scale · x · tableᵀ`."""

    scale: float

    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        """Maps `[B, L, width]` and `[V, width]` to logits `[B, L, V]`."""
        return record(self, "out", self.scale * (x @ table.T))
