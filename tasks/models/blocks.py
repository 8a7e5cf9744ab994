"""Pre-norm residual blocks of transformers.

A block adds two branches to the residual stream, attention and an MLP, each behind a
norm (Xiong et al., arXiv:2002.04745) and each multiplied by `Rules.residual_scale`.
Depth counts blocks.

If blocks are scanned, one block is compiled whatever the depth, and each parameter is
one array with stacked layers (`[layers]`): the same function, but other tensors for an
optimizer that normalizes per tensor.
"""

from __future__ import annotations

import abc
import math
from typing import Any, Self

import flax.linen as nn
import jax

from configuration.fields import configuration
from parametrization.rules import ADAM_LIKE, Rules
from tasks.models import base
from tasks.models.attention import Attention
from tasks.models.base import ACTIVATIONS, Activation, Model, record
from tasks.models.layers import Dense, Norm


@configuration
class BlockModel(Model, abc.ABC):
    """Fields of every transformer; subclasses are final."""

    width: int = 64
    """Size of the residual stream, a multiple of head_dim."""
    depth: int = 2
    """Number of residual blocks, each of attention and an MLP."""
    head_dim: int = 16
    """Size of one attention head; wider networks have more heads."""
    mlp_ratio: int = 4
    """Hidden units of each MLP, over the width."""
    scan: bool = False
    """Whether blocks run in one compiled loop with stacked parameters."""
    activation: Activation = "gelu"
    """Nonlinearity of the MLPs."""
    base_width: int = 64
    """Width of the base model, where μP multipliers are 1."""
    base_depth: int = 2
    """Number of blocks at which CompleteP's multipliers are 1."""
    base_head_dim: int = 16
    """Size of the base model's heads; head_dim if only their number grows."""
    rules: Rules = ADAM_LIKE
    """Parametrization of the forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for width, head_dim in (("width", "head_dim"), ("base_width", "base_head_dim")):
            if getattr(self, width) % getattr(self, head_dim):
                raise ValueError(
                    f"{width} = {getattr(self, width)} must be a multiple of "
                    f"{head_dim} = {getattr(self, head_dim)}"
                )

    def with_base_width(self, base_width: int) -> Self:
        """Returns the same network with another base width.

        Where base_head_dim does not divide it, the base model's heads become smaller.
        At base width 1 they have size 1, and attention is scaled by 1/head_dim.
        """
        head_dim = math.gcd(base_width, self.base_head_dim)
        return self._with(base_width=base_width, base_head_dim=head_dim)

    def base(self) -> Self:
        """Returns the base model at this depth (see `Model.base`)."""
        return self._with(width=self.base_width, head_dim=self.base_head_dim)


class FeedForward(nn.Module):
    """The MLP branch."""

    model: BlockModel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, L, width]` to `[B, L, width]`."""
        model, width = self.model, x.shape[-1]
        mult = model.depth_mult
        up = Dense(model.mlp_ratio * width, "width", "mlp", depth_mult=mult, name="up")
        active = record(self, "active", base.activation(model.activation)(up(x)))
        return Dense(width, "mlp", depth_mult=mult, name="down")(active)


class Block(nn.Module):
    """x + s · attention(norm(x)), then x + s · mlp(norm(x))."""

    model: BlockModel
    causal: bool
    rotary: bool

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """Maps `[B, L, width]` to the same shape and None, as a scan requires."""
        model, mult = self.model, self.model.depth_mult
        attention = Attention(
            heads=model.width // model.head_dim,
            head_dim=model.head_dim,
            scale=model.rules.attention_scale(model.head_dim, model.base_head_dim),
            causal=self.causal,
            rotary=self.rotary,
            depth_mult=mult,
            name="attention",
        )
        scale = model.residual_scale
        x = x + scale * attention(Norm(depth_mult=mult, name="attention_norm")(x))
        mlp = FeedForward(model, name="mlp")
        x = x + scale * mlp(Norm(depth_mult=mult, name="mlp_norm")(x))
        return record(self, "out", x), None


class Residual(nn.Module):
    """All blocks, in sequence or scanned; records the last stream as `out`."""

    model: BlockModel
    causal: bool = False
    rotary: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, L, width]` to `[B, L, width]`."""
        model = self.model
        if model.scan:
            blocks: Any = nn.scan(
                Block,
                variable_axes={"params": 0, ACTIVATIONS: 0},
                split_rngs={"params": True},
                length=model.depth,
            )
            x, _ = blocks(model, self.causal, self.rotary, name="blocks")(x, None)
        else:
            for i in range(model.depth):
                block = Block(model, self.causal, self.rotary, name=f"block_{i}")
                x, _ = block(x)
        return record(self, "out", x)
