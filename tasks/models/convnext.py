"""Residual blocks of depthwise convolutions, which all three stages are built from.

A block mixes positions by a 3x3 convolution of every channel with itself, and channels
by an MLP at every position; response normalization lets the channels compete (ConvNeXt
V2). What conditions the network, noise level or class, scales and shifts the normalized
input of a branch, and starts by doing nothing. As in a pre-norm transformer nothing but
additions happens to the residual stream, which `Rules.residual_scale` speaks of.

**The role of a depthwise kernel.** Each output sums over the 9 places under the kernel
and over no other channel, so the fan-in is 9 at every width; what grows is the number
of channels that are computed side by side. The axes are therefore
`kernel kernel -> channels`, not `kernel kernel channels -> channels`: a fan-in of fixed
axes and a scaling fan-out, an *input* matrix, whose exponents in `rules.py` are those
of a vector in every column. An Adam step of Θ(1) per element moves a sum of 9 terms by
Θ(1) whatever the width, so its factor is 1, as for a bias or a gain; the factor 1/n_in
of a full convolution would freeze it in wide networks. The initial deviation is 1/3.

References: Woo et al., ConvNeXt V2, arXiv:2301.00808, Section 3; Pernias et al.,
Würstchen, arXiv:2306.00637, Stage C; the scale and shift stand inside the branch as in
Peebles and Xie, DiT, arXiv:2212.09748, Section 3.2.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.rules import ADAM_LIKE, Rules, drawn_zeros, initializer
from parametrization.spec import named
from tasks.models import base
from tasks.models.base import Activation, Model, record
from tasks.models.layers import Dense, Norm

KERNEL = 3
"""Height and width of a depthwise kernel."""
NUM_FREQUENCIES = 16
"""Sines and as many cosines that describe a noise level."""
HIGHEST_FREQUENCY = 1000.0
"""Of them, in radians over the range of times from 0 to 1; the lowest is 1."""


@configuration
class ConvNeXtModel(Model, abc.ABC):
    """The fields that every stage's network has; subclasses are final."""

    width: int = 64
    """Channels of the residual stream, and of every convolution."""
    depth: int = 4
    """Number of residual blocks (of an autoencoder: on each side)."""
    mlp_ratio: int = 2
    """Hidden units of each block's MLP, over the width."""
    activation: Activation = "silu"
    """Nonlinearity of the MLPs, the convolutions and the conditioning."""
    base_width: int = 64
    """Width of the base model, where μP multipliers are 1."""
    base_depth: int = 4
    """Number of blocks at which CompleteP's multipliers are 1."""
    rules: Rules = ADAM_LIKE
    """Parametrization of the forward pass."""

    def __post_init__(self) -> None:
        base.check_positive(self, "width", "depth", "mlp_ratio")
        base.check_positive(self, "base_width", "base_depth")

    def at_width(self, width: int) -> Self:
        """The same network of another width."""
        return dataclasses.replace(self, width=width)

    def at_depth(self, depth: int) -> Self:
        """The same network with another number of blocks."""
        return dataclasses.replace(self, depth=depth)

    @property
    def depth_mult(self) -> float:
        """Number of blocks over that of the base model."""
        return self.depth / self.base_depth


class DepthwiseConv(nn.Module):
    """A convolution of each channel with a kernel of its own, padded as "SAME".

    A sum of nine shifted products: on CPUs XLA's own depthwise convolution took many
    times as long inside a loop.
    """

    depth_mult: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, h, w, channels]` to the same shape."""
        _, height, width, channels = x.shape
        axes = "kernel kernel -> channels"
        kernel: Any = self.param(
            "kernel", initializer(axes, self.depth_mult), (KERNEL, KERNEL, channels)
        )
        bias: Any = self.param(
            "bias", initializer("-> channels", self.depth_mult), (channels,)
        )
        edge = KERNEL // 2
        padded = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        # Shifted down, then across: [B, h, w, KERNEL · KERNEL, channels].
        seen = jnp.stack([padded[:, i : i + height] for i in range(KERNEL)], axis=3)
        seen = jnp.stack([seen[:, :, j : j + width] for j in range(KERNEL)], axis=4)
        seen = seen.reshape(*x.shape[:3], -1, channels)
        weights = jnp.broadcast_to(kernel.reshape(-1, channels), seen.shape)
        out = jnp.sum(seen * weights, axis=3) + jnp.broadcast_to(bias, x.shape)
        return record(self, "out", out)


class ResponseNorm(nn.Module):
    """Global response normalization: x + gain · x · N(x) + shift, at the start x.

    N is the norm of a channel over all positions, over the mean of the norms of all
    channels (arXiv:2301.00808, Equations 1 to 3).
    """

    depth_mult: float = 1.0
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, h, w, mlp]` to the same shape."""
        init = initializer("-> mlp", self.depth_mult)
        params: list[Any] = [
            self.param(name, init, x.shape[-1:]) for name in ("gain", "shift")
        ]
        gain, shift = (jnp.broadcast_to(p, x.shape) for p in params)
        # A channel that is 0 everywhere has a gradient too.
        norms = jnp.sqrt(jnp.sum(x**2, (1, 2), keepdims=True) + self.epsilon)
        relative = norms / jnp.mean(norms, -1, keepdims=True)
        return record(self, "out", x + gain * x * relative + shift)


class Modulation(nn.Module):
    """x · (1 + scale) + shift, both linear in a condition and 0 at the start."""

    depth_mult: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Maps `[B, h, w, channels]` and `[B, width]` to the shape of the former."""
        shape = (condition.shape[-1], 2, x.shape[-1])
        init = named(drawn_zeros, "channels -> gates channels", self.depth_mult)
        kernel: Any = self.param("kernel", init, shape)
        bias: Any = self.param(
            "bias", initializer("-> gates channels", self.depth_mult), shape[1:]
        )
        both = (condition @ kernel.reshape(shape[0], -1)).reshape(-1, *shape[1:])
        both = both + jnp.broadcast_to(bias, both.shape)
        scale, shift = (
            jnp.broadcast_to(both[:, i, None, None], x.shape) for i in range(2)
        )
        return record(self, "out", x * (1.0 + scale) + shift)


class Block(nn.Module):
    """x + s · MLP(modulated norm of the depthwise convolution of x)."""

    model: ConvNeXtModel

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Maps `[B, h, w, width]` to the same shape; the condition is `[B, width]`."""
        model, width = self.model, x.shape[-1]
        mult = model.depth_mult
        branch = DepthwiseConv(mult, name="depthwise")(x)
        branch = Norm("channels", depth_mult=mult, name="norm")(branch)
        if condition is not None:
            branch = Modulation(mult, name="modulation")(branch, condition)
        hidden = model.mlp_ratio * width
        branch = Dense(hidden, "channels", "mlp", depth_mult=mult, name="up")(branch)
        branch = base.activation(model.activation)(branch)
        branch = ResponseNorm(mult, name="response_norm")(branch)
        branch = Dense(width, "mlp", "channels", depth_mult=mult, name="down")(branch)
        return x + model.rules.residual_scale(model.depth, model.base_depth) * branch


class Blocks(nn.Module):
    """All blocks, one after the other."""

    model: ConvNeXtModel

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Maps `[B, h, w, width]` to the same shape."""
        for i in range(self.model.depth):
            x = Block(self.model, name=f"block_{i}")(x, condition)
        return x


class TimeEmbedding(nn.Module):
    """A vector that says which noise level it is."""

    width: int

    @nn.compact
    def __call__(self, times: jax.Array) -> jax.Array:
        """Maps times `[B]` in [0, 1] to `[B, width]`."""
        features = time_features(times)
        return Dense(self.width, "inputs", "channels", name="dense")(features)


def time_features(times: jax.Array) -> jax.Array:
    """Sines and cosines of geometric frequencies, `[B]` to `[B, 32]`."""
    powers = jnp.arange(NUM_FREQUENCIES) / (NUM_FREQUENCIES - 1)
    angles = times[:, None] * (HIGHEST_FREQUENCY**powers)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Cuts into patches: `[B, h, w, c]` to `[B, h/patch, w/patch, patch, patch, c]`."""
    num, height, width, channels = x.shape
    cut = x.reshape(num, height // patch, patch, width // patch, patch, channels)
    return cut.swapaxes(2, 3)


def depth_to_space(x: jax.Array) -> jax.Array:
    """The inverse: `[B, h, w, patch, patch, c]` to `[B, h · patch, w · patch, c]`."""
    num, height, width, patch, _, channels = x.shape
    return x.swapaxes(2, 3).reshape(num, height * patch, width * patch, channels)
