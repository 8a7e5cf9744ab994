"""Convolutional classifiers: 3x3 convolutions with strides, one after the other.

The channels of every layer are a multiple of the width, so all of them grow together
and the ratio to the base model is the same everywhere. The area of a kernel is a fixed
part of the fan-in. Positions are averaged before the readout: the network takes images
of any resolution, and signals `[B, 1, length, 1]` too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.rules import ADAM_LIKE, Rules
from tasks.models import base
from tasks.models.base import Activation, Model, record
from tasks.models.layers import Conv, Norm, readout

ChannelNorm = Literal["layer", "group"]
"""layer: over the channels of one position; group: over the positions too."""
OptionalNorm = Literal["none", "layer", "group"]
"""As `ChannelNorm`, or no normalization."""


@configuration
class ConvNet(Model):
    """A stack of 3x3 convolutions, a mean over positions and a readout.

    The default is the usual small network of learned optimization: 32, 64 and 64
    channels with strides 2, 1 and 1, as `Conv_Cifar10_32x64x64` of the library of Metz
    et al., arXiv:2203.11860.
    """

    width: int = 32
    """Channels of a layer whose multiplier is 1."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels of each layer over the width, first to last."""
    strides: tuple[int, ...] = (2, 1, 1)
    """Stride of each layer, in pixels of its input, along both axes."""
    base_width: int = 32
    """Width of the base model, where μP multipliers are 1."""
    rules: Rules = ADAM_LIKE
    """Parametrization; without residual branches CompleteP is the same as μP."""
    activation: Activation = "relu"
    """Nonlinearity after each convolution."""
    norm: OptionalNorm = "none"
    """Normalizes each convolution before its nonlinearity, in place of its bias."""
    groups: int = 4
    """Groups of channels, the same number at every width; used by norm="group"."""

    def __post_init__(self) -> None:
        for name in ("multipliers", "strides"):
            check_sizes(self, name)
        if len(self.strides) != len(self.multipliers):
            raise ValueError(
                f"strides = {self.strides} must be as many as multipliers = "
                f"{self.multipliers}"
            )
        base.check_positive(self, "width", "base_width", "groups")
        check_groups(self, self.multipliers)

    @property
    def depth(self) -> int:
        """Number of convolutions."""
        return len(self.multipliers)

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Channels of each convolution."""
        return tuple(times * self.width for times in self.multipliers)

    def at_width(self, width: int) -> Self:
        """The same layers, each with its multiple of another width."""
        return dataclasses.replace(self, width=width)

    def at_depth(self, depth: int) -> Self:
        """The first `depth` layers, or more like the last one, with stride 1."""
        more = max(depth - self.depth, 0)
        return dataclasses.replace(
            self,
            multipliers=self.multipliers[: max(depth, 0)]
            + self.multipliers[-1:] * more,
            strides=self.strides[: max(depth, 0)] + (1,) * more,
        )

    def module(self, num_outputs: int) -> nn.Module:
        """Maps `[B, h, w, channels]` to logits `[B, num_outputs]`."""
        return _ConvNetModule(self, num_outputs)


class _ConvNetModule(nn.Module):
    model: ConvNet
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        model = self.model
        check_images(x)
        for i, (times, stride) in enumerate(
            zip(model.multipliers, model.strides, strict=True)
        ):
            x = Conv(
                times * model.width,
                stride=stride,
                fan_in="channels" if i else "image_channels",
                use_bias=model.norm == "none",
                name=f"conv_{i}",
            )(x)
            if model.norm != "none":
                x = channel_norm(x, model.norm, model.groups, f"norm_{i}")
            x = base.activation(model.activation)(x)
        pooled = record(self, "pooled", jnp.mean(x, axis=(1, 2)))
        base_channels = model.multipliers[-1] * model.base_width
        return readout(
            self.num_outputs,
            x.shape[-1],
            base_channels,
            model.rules,
            fan_in="channels",
        )(pooled)


def channel_norm(
    x: jax.Array, norm: ChannelNorm, groups: int, name: str, depth_mult: float = 1.0
) -> jax.Array:
    """Normalizes `[B, h, w, channels]`, by a submodule of that name.

    Raises:
        ValueError: if one value would be normalized by itself, to zero.
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


def check_images(x: jax.Array) -> None:
    """Raises ValueError if these are not images `[B, h, w, channels]`."""
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(
            f"inputs of shape {x.shape[1:]} must be images [height, width, channels]"
        )


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
    """Raises ValueError if group normalization, if that is the norm, has no groups.

    Args:
        model: a model with fields `norm`, `groups`, `width` and `base_width`.
        multipliers: channels over the width, of every layer that is normalized.
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
