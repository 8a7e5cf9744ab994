"""Convolutional classifiers: a stack of strided 3x3 convolutions.

The channels of every layer are a multiple of the width, so all of them have the same
ratio to the base model; the area of a kernel is a fixed part of fan-in. Positions are
averaged before the readout, so images may have any resolution, and signals
`[B, 1, length, 1]` work too.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.rules import ADAM_LIKE, Rules
from tasks.models import base
from tasks.models.base import Activation, Model, record
from tasks.models.layers import Conv, Norm, check_images, readout

ChannelNorm = Literal["layer", "group"]
"""layer: over the channels of one position; group: over positions too."""
OptionalNorm = Literal["none", "layer", "group"]
"""As `ChannelNorm`, or no normalization."""


@configuration
class ConvNet(Model):
    """A stack of 3x3 convolutions, a mean over positions and a readout.

    The default, 32, 64 and 64 channels with strides 2, 1 and 1, is
    `Conv_Cifar10_32x64x64` of Metz et al., arXiv:2203.11860.
    """

    width: int = 32
    """Channels of a layer whose multiplier is 1."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels of each layer over the width, first to last."""
    strides: tuple[int, ...] = (2, 1, 1)
    """Stride of each layer along both axes, in pixels of its input."""
    base_width: int = 32
    """Width of the base model, where μP multipliers are 1."""
    rules: Rules = ADAM_LIKE
    """Parametrization; without residual branches CompleteP is the same as μP."""
    activation: Activation = "relu"
    """Nonlinearity after each convolution."""
    norm: OptionalNorm = "none"
    """Normalizes each convolution before its nonlinearity, in place of its bias."""
    groups: int = 4
    """Number of groups of channels for norm="group", the same at every width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("multipliers", "strides"):
            check_sizes(self, name)
        if len(self.strides) != len(self.multipliers):
            raise ValueError(
                f"strides = {self.strides} must be as many as multipliers = "
                f"{self.multipliers}"
            )
        check_groups(self, self.multipliers)

    @property
    def depth(self) -> int:
        """Number of convolutions."""
        return len(self.multipliers)

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Channels of each convolution."""
        return tuple(times * self.width for times in self.multipliers)

    def at_depth(self, depth: int) -> Self:
        """Keeps the first `depth` layers, or appends ones like the last of stride 1."""
        kept, more = max(depth, 0), max(depth - self.depth, 0)
        return self._with(
            multipliers=self.multipliers[:kept] + self.multipliers[-1:] * more,
            strides=self.strides[:kept] + (1,) * more,
        )

    def forward(self, module: nn.Module, x: jax.Array, num_outputs: int) -> jax.Array:
        """Maps `[B, h, w, channels]` to logits `[B, num_outputs]`."""
        check_images(x)
        for i, (times, stride) in enumerate(
            zip(self.multipliers, self.strides, strict=True)
        ):
            x = Conv(
                times * self.width,
                stride=stride,
                fan_in="channels" if i else "image_channels",
                use_bias=self.norm == "none",
                name=f"conv_{i}",
            )(x)
            if self.norm != "none":
                x = channel_norm(x, self.norm, self.groups, f"norm_{i}")
            x = base.activation(self.activation)(x)
        pooled = record(module, "pooled", jnp.mean(x, axis=(1, 2)))
        return readout(self, num_outputs, "channels")(pooled)


def channel_norm(
    x: jax.Array, norm: ChannelNorm, groups: int, name: str, depth_mult: float = 1.0
) -> jax.Array:
    """Normalizes `[B, h, w, channels]`, in a submodule of that name.

    Raises:
        ValueError: if a single value would be normalized, to zero.
    """
    _, height, width, channels = x.shape
    together = channels if norm == "layer" else height * width * (channels // groups)
    if together < 2:
        raise ValueError(
            f"norm = {norm!r} of inputs of shape {x.shape[1:]} has one value to "
            "normalize at a time and would make it 0: use more channels"
        )
    count = groups if norm == "group" else None
    return Norm("channels", count, depth_mult=depth_mult, name=name)(x)


def check_sizes(model: Any, name: str) -> None:
    """Raises ValueError if the field is empty or a size is not positive."""
    sizes = getattr(model, name)
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"{name} = {sizes!r} must be a non-empty tuple of positive integers"
        )
    if sum(sizes) > base.DEEPEST:
        raise ValueError(f"{name} = {sizes!r} must be at most {base.DEEPEST:,} in sum")


def check_groups(model: Any, multipliers: tuple[int, ...]) -> None:
    """Raises ValueError if group normalization cannot divide the channels.

    `multipliers` are channels over the width, for every normalized layer.
    """
    if model.norm != "group":
        return
    for name in ("width", "base_width"):
        channels = [times * getattr(model, name) for times in multipliers]
        if any(count % model.groups for count in channels):
            raise ValueError(
                f"groups = {model.groups} must divide the channels of every layer, "
                f"with {name} = {getattr(model, name)} these are {channels}"
            )
