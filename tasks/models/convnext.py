"""Residual blocks of depthwise convolutions, shared by the three stages.

A block mixes positions by a 3x3 convolution within each channel, and channels by an MLP
at each position; response normalization makes channels compete (ConvNeXt V2). A
condition, such as noise level or class, scales and shifts the normalized input of a
branch, starting from the identity. As in a pre-norm transformer, nothing but additions
happens to the residual stream.

**The role of a depthwise kernel.** Each output sums over 9 positions of one channel, so
fan-in is 9 at every width and only the number of channels grows. Its axes are therefore
`kernel kernel -> channels`, an *input* matrix. An Adam step of Θ(1) per element moves a
sum of 9 terms by Θ(1) whatever the width, so its factor is 1, as for a bias; the factor
1/n_in of a full convolution would freeze it in wide networks.

References: Woo et al., ConvNeXt V2, arXiv:2301.00808, Section 3; Pernias et al.,
Würstchen, arXiv:2306.00637, Stage C; scale and shift are inside the branch as in
Peebles and Xie, DiT, arXiv:2212.09748, Section 3.2.
"""

from __future__ import annotations

import abc
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.rules import ADAM_LIKE, Rules, drawn_zeros, initializer
from parametrization.spec import named
from tasks.models import base
from tasks.models.base import Activation, Model, record
from tasks.models.layers import Dense, Norm, add_bias

KERNEL = 3
"""Height and width of a depthwise kernel."""
NUM_FREQUENCIES = 16
"""Number of sines, and of cosines, that encode a noise level."""
HIGHEST_FREQUENCY = 1000.0
"""In radians over times from 0 to 1; the lowest frequency is 1."""


@configuration
class ConvNeXtModel(Model, abc.ABC):
    """Fields of every stage's network; subclasses are final."""

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


class DepthwiseConv(nn.Module):
    """A convolution within each channel, padded as "SAME".

    A sum of nine shifted products: inside a loop on CPUs, XLA's own depthwise
    convolution took many times as long.
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
        edge = KERNEL // 2
        padded = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        # Shifted down, then across: [B, h, w, KERNEL · KERNEL, channels].
        seen = jnp.stack([padded[:, i : i + height] for i in range(KERNEL)], axis=3)
        seen = jnp.stack([seen[:, :, j : j + width] for j in range(KERNEL)], axis=4)
        seen = seen.reshape(*x.shape[:3], -1, channels)
        weights = jnp.broadcast_to(kernel.reshape(-1, channels), seen.shape)
        out = add_bias(self, jnp.sum(seen * weights, axis=3), "channels")
        return record(self, "out", out)


class ResponseNorm(nn.Module):
    """Global response normalization x + gain · x · N(x) + shift, which starts as x.

    N(x) is the norm of a channel over all positions, divided by the mean norm of all
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
        # epsilon: a channel that is 0 everywhere has a gradient too.
        norms = jnp.sqrt(jnp.sum(x**2, (1, 2), keepdims=True) + self.epsilon)
        relative = norms / jnp.mean(norms, -1, keepdims=True)
        return record(self, "out", x + gain * x * relative + shift)


class Modulation(nn.Module):
    """x · (1 + scale) + shift, both linear in a condition and 0 at the start."""

    depth_mult: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Maps x `[B, h, w, channels]` and a condition `[B, width]` to x's shape."""
        shape = (condition.shape[-1], 2, x.shape[-1])
        init = named(drawn_zeros, "channels -> gates channels", self.depth_mult)
        kernel: Any = self.param("kernel", init, shape)
        both = (condition @ kernel.reshape(shape[0], -1)).reshape(-1, *shape[1:])
        both = add_bias(self, both, "gates channels")
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
        return x + model.residual_scale * branch


class Blocks(nn.Module):
    """All blocks in sequence."""

    model: ConvNeXtModel

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Maps `[B, h, w, width]` to the same shape."""
        for i in range(self.model.depth):
            x = Block(self.model, name=f"block_{i}")(x, condition)
        return x


class TimeEmbedding(nn.Module):
    """An embedding of the noise level."""

    width: int

    @nn.compact
    def __call__(self, times: jax.Array) -> jax.Array:
        """Maps times `[B]` in [0, 1] to `[B, width]`."""
        features = time_features(times)
        return Dense(self.width, "inputs", "channels", name="dense")(features)


def time_features(times: jax.Array) -> jax.Array:
    """Computes sines and cosines of geometric frequencies, `[B]` to `[B, 32]`."""
    powers = jnp.arange(NUM_FREQUENCIES) / (NUM_FREQUENCIES - 1)
    angles = times[:, None] * (HIGHEST_FREQUENCY**powers)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
