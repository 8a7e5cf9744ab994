"""Layers whose parameters carry their axis names, so their μP role is never guessed.

Every layer records its output for coordinate checks. `depth_mult` is that of the
residual block in which a layer stands, 1 outside (see `ParamSpec`).
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from parametrization.rules import Rules, initializer
from parametrization.spec import named
from tasks.models.base import record


class Dense(nn.Module):
    """`scale · (x · kernel) + bias`, the kernel annotated `fan_in -> fan_out`.

    The kernel contracts as many trailing axes of the input as `fan_in` names, and makes
    as many as `features` has sizes. The bias lies outside the multiplier, so it is a
    vector like any other.
    """

    features: int | tuple[int, ...]
    fan_in: str
    fan_out: str = "width"
    scale: float = 1.0
    use_bias: bool = True
    depth_mult: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., *inputs]` to `[..., *features]`."""
        features = (
            self.features if isinstance(self.features, tuple) else (self.features,)
        )
        contracted = x.shape[x.ndim - len(self.fan_in.split()) :]
        axes = f"{self.fan_in} -> {self.fan_out}"
        kernel_init = initializer(axes, self.depth_mult)
        kernel: Any = self.param("kernel", kernel_init, (*contracted, *features))
        # One product of two matrices, whatever the number of axes.
        rows = x.reshape(*x.shape[: x.ndim - len(contracted)], math.prod(contracted))
        matrix = kernel.reshape(math.prod(contracted), math.prod(features))
        product = rows.astype(kernel.dtype) @ matrix
        out = self.scale * product.reshape(*product.shape[:-1], *features)
        if self.use_bias:
            bias_init = initializer(f"-> {self.fan_out}", self.depth_mult)
            bias: Any = self.param("bias", bias_init, features)
            out = out + jnp.broadcast_to(bias, out.shape)
        return record(self, "out", out)


def readout(
    num_outputs: int,
    width: int,
    base_width: int,
    rules: Rules,
    name: str = "readout",
    fan_out: str = "classes",
    fan_in: str = "width",
) -> Dense:
    """The last layer: zero-initialized, in μP its product scaled by base/fan-in.

    `width` and `base_width` are sizes of the axis `fan_in`.
    """
    scale = rules.forward_scale(width, base_width)
    return Dense(num_outputs, fan_in=fan_in, fan_out=fan_out, scale=scale, name=name)


class Conv(nn.Module):
    """A two-dimensional convolution `[B, h, w, c]`, padded as "SAME".

    Computed as one matrix product of the patches under the kernel: in meta-training
    every particle has a kernel of its own, and a vmapped product stays one, where a
    vmapped convolution becomes a grouped one, which few backends do fast. It also
    compiles sooner.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    fan_in: str = "channels"
    use_bias: bool = True
    depth_mult: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, h, w, channels]` to `[B, ⌈h/stride⌉, ⌈w/stride⌉, features]`."""
        size = self.kernel_size
        kernel_init = initializer(
            f"kernel kernel {self.fan_in} -> channels", self.depth_mult
        )
        shape = (size, size, x.shape[-1], self.features)
        kernel: Any = self.param("kernel", kernel_init, shape)
        patches = _patches(x.astype(kernel.dtype), size, self.stride)
        out = patches @ kernel.reshape(-1, self.features)
        if self.use_bias:
            bias_init = initializer("-> channels", self.depth_mult)
            bias: Any = self.param("bias", bias_init, (self.features,))
            out = out + jnp.broadcast_to(bias, out.shape)
        return record(self, "out", out)


def _patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """What each place of a kernel sees, `[B, ⌈h/stride⌉, ⌈w/stride⌉, size² · c]`."""
    if size == 1:
        return x[:, ::stride, ::stride]
    counts = [-(-n // stride) for n in x.shape[1:3]]
    missing = [
        max((count - 1) * stride + size - n, 0)
        for count, n in zip(counts, x.shape[1:3], strict=True)
    ]
    around = [(total // 2, total - total // 2) for total in missing]
    padded = jnp.pad(x, ((0, 0), *around, (0, 0)))
    rows, columns = ((count - 1) * stride + 1 for count in counts)
    return jnp.concatenate(
        [
            padded[:, i : i + rows : stride, j : j + columns : stride]
            for i in range(size)
            for j in range(size)
        ],
        axis=-1,
    )


class Norm(nn.Module):
    """Layer or group normalization over the last axis, with a learned gain and shift.

    Layer normalization is over the last axis alone; group normalization over the
    positions too, with the channels in `groups` groups.
    """

    axis: str = "width"
    groups: int | None = None
    epsilon: float = 1e-6
    depth_mult: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, ..., features]` to the same shape."""
        features = x.shape[-1]
        if self.groups is None:
            grouped, axes = x, (-1,)
        else:
            grouped = x.reshape(x.shape[0], -1, self.groups, features // self.groups)
            axes = (1, 3)
        mean = jnp.mean(grouped, axes, keepdims=True)
        centred = grouped - mean
        variance = jnp.mean(centred**2, axes, keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        gain_init = named(nn.initializers.ones, f"-> {self.axis}", self.depth_mult)
        gain: Any = self.param("gain", gain_init, (features,))
        shift_init = initializer(f"-> {self.axis}", self.depth_mult)
        shift: Any = self.param("shift", shift_init, (features,))
        out = normal * jnp.broadcast_to(gain, x.shape)
        return record(self, "out", out + jnp.broadcast_to(shift, x.shape))


def lookup(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows `[..., features]` of a table; a token that it has not is NaN."""
    none = table.shape[0]
    return jnp.take(table, jnp.where(tokens < 0, none, tokens), axis=0)


class Embedding(nn.Module):
    """A table of rows `[rows, width]`, annotated `rows_name -> width`.

    Its entries start at `std`, 1 unless the table is used as a readout too; it must not
    depend on the width.
    """

    rows: int
    features: int
    rows_name: str = "vocab"
    std: float = 1.0

    @nn.compact
    def __call__(self) -> jax.Array:
        """The table itself: callers look rows up, add them or multiply by them."""
        table_init = initializer(f"{self.rows_name} -> width")
        if self.std != 1.0:
            table_init = named(
                nn.initializers.normal(self.std), f"{self.rows_name} -> width"
            )
        table: Any = self.param("table", table_init, (self.rows, self.features))
        return table
