"""Residual convolutional classifiers without batch statistics.

Blocks are pre-activation: a branch normalizes its own input, and nothing but additions
happens to the residual stream between the stem and the last normalization. The stream
is then a sum of branches, as CompleteP's multiplier 1/m requires. Where a block changes
the shape, its shortcut projects the stream outside the branch.

Group or layer normalization replaces batch normalization, so parameters are the only
state and the loss is a mean over independent examples.

References: He et al., Identity Mappings in Deep Residual Networks, arXiv:1603.05027,
Figure 4(e); Wu and He, Group Normalization, arXiv:1803.08494.
"""

from __future__ import annotations

from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.rules import ADAM_LIKE, Rules
from tasks.models import base
from tasks.models.base import Activation, Model, record
from tasks.models.convolutional import (
    ChannelNorm,
    channel_norm,
    check_groups,
    check_sizes,
)
from tasks.models.layers import Conv, check_images, readout


@configuration
class ResNet(Model):
    """Stages of basic blocks (two 3x3 convolutions each) on a residual stream.

    The stem is a 3x3 convolution without pooling. The first stage has `width` channels
    at the image's resolution; each later one has twice the channels at half the
    resolution. Conventional sizes, as (blocks, width):

    * CIFAR: ResNet-20 ((3, 3, 3), 16), ResNet-32 ((5, 5, 5), 16), ResNet-56
      ((9, 9, 9), 16), ResNet-110 ((18, 18, 18), 16).
    * ImageNet's stages: ResNet-18 ((2, 2, 2, 2), 64), ResNet-34 ((3, 4, 6, 3), 64).
    """

    blocks: tuple[int, ...] = (2, 2, 2)
    """Blocks of each stage, first to last."""
    width: int = 16
    """Channels of the first stage; stage s has 2^s times as many."""
    base_width: int = 16
    """Width of the base model, where μP multipliers are 1."""
    base_depth: int = 6
    """Number of blocks at which CompleteP's multipliers are 1."""
    rules: Rules = ADAM_LIKE
    """Parametrization of the forward pass."""
    activation: Activation = "relu"
    """Nonlinearity before each convolution of a block, and before the mean."""
    norm: ChannelNorm = "group"
    """Normalization before each nonlinearity."""
    groups: int = 4
    """Number of groups of channels for norm="group", the same at every width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "blocks")
        check_groups(self, self.multipliers)

    @property
    def depth(self) -> int:
        """Number of blocks of all stages."""
        return sum(self.blocks)

    @property
    def multipliers(self) -> tuple[int, ...]:
        """Channels of each stage, over the width."""
        return tuple(2**stage for stage in range(len(self.blocks)))

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Channels of each block's output."""
        stages = zip(self.blocks, self.multipliers, strict=True)
        return tuple(
            times * self.width for blocks, times in stages for _ in range(blocks)
        )

    def at_depth(self, depth: int) -> Self:
        """Spreads `depth` blocks evenly over the stages, the first ones getting more.

        Raises:
            ValueError: if a stage would have no block.
        """
        stages = len(self.blocks)
        if depth < stages:
            raise ValueError(
                f"depth = {depth} must be at least {stages}, a block for each stage"
            )
        each, more = divmod(depth, stages)
        blocks = tuple(each + (stage < more) for stage in range(stages))
        return self._with(blocks=blocks)

    def forward(self, module: nn.Module, x: jax.Array, num_outputs: int) -> jax.Array:
        """Maps `[B, h, w, channels]` to logits `[B, num_outputs]`."""
        check_images(x)
        x = Conv(self.width, fan_in="image_channels", use_bias=False, name="stem")(x)
        for stage, (blocks, times) in enumerate(
            zip(self.blocks, self.multipliers, strict=True)
        ):
            for i in range(blocks):
                stride = 2 if stage and i == 0 else 1
                name = f"stage_{stage}_block_{i}"
                x = _Block(self, times * self.width, stride, name=name)(x)
                # Named by its place in the stage, which changes with depth.
                record(module, f"stage_{stage}_stream_{i + 1}_of_{blocks}", x)
            record(module, f"stage_{stage}_stream", x)
        x = channel_norm(x, self.norm, self.groups, "norm")
        x = base.activation(self.activation)(x)
        pooled = record(module, "pooled", jnp.mean(x, axis=(1, 2)))
        return readout(self, num_outputs, "channels")(pooled)


class _Block(nn.Module):
    """`x + scale · branch(x)`, x projected where the branch changes its shape."""

    model: ResNet
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        model, mult = self.model, self.model.depth_mult
        branch = x
        for i, stride in enumerate((self.stride, 1)):
            branch = channel_norm(branch, model.norm, model.groups, f"norm_{i}", mult)
            branch = base.activation(model.activation)(branch)
            branch = Conv(
                self.features,
                stride=stride,
                use_bias=False,
                depth_mult=mult,
                name=f"conv_{i}",
            )(branch)
        if x.shape != branch.shape:
            x = Conv(self.features, 1, self.stride, use_bias=False, name="shortcut")(x)
        return x + model.residual_scale * branch
