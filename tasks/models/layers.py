"""Layers whose parameters carry axis names, and so their μP roles.

Every layer records its output for coordinate checks. `depth_mult` is that of the
residual block around the layer, 1 outside (see `ParamSpec`).
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from parametrization.rules import initializer, readout_std
from parametrization.spec import named
from tasks.models.base import Model, record


class Dense(nn.Module):
    """`scale · (x · kernel) + bias`, with a kernel annotated `fan_in -> fan_out`.

    The kernel contracts as many trailing axes of the input as `fan_in` names. The bias
    is outside the multiplier, so it is a vector like any other.
    """

    features: int | tuple[int, ...]
    fan_in: str
    fan_out: str = "width"
    scale: float = 1.0
    use_bias: bool = True
    depth_mult: float = 1.0
    drawn: bool = False
    """Whether a kernel that is a readout is drawn rather than zero (`readout_std`)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., *inputs]` to `[..., *features]`."""
        made = self.features
        features = made if isinstance(made, tuple) else (made,)
        contracted = x.shape[x.ndim - len(self.fan_in.split()) :]
        axes = f"{self.fan_in} -> {self.fan_out}"
        std = readout_std(math.prod(contracted), self.scale) if self.drawn else None
        kernel_init = initializer(axes, self.depth_mult, std)
        kernel: Any = self.param("kernel", kernel_init, (*contracted, *features))
        # A product of two matrices, whatever the number of axes.
        rows = x.reshape(*x.shape[: x.ndim - len(contracted)], math.prod(contracted))
        matrix = kernel.reshape(math.prod(contracted), math.prod(features))
        product = rows.astype(kernel.dtype) @ matrix
        out = self.scale * product.reshape(*product.shape[:-1], *features)
        if self.use_bias:
            out = add_bias(self, out, self.fan_out)
        return record(self, "out", out)


def add_bias(module: Any, x: jax.Array, axes: str) -> jax.Array:
    """Adds a parameter "bias" over the trailing axes of `x` that `axes` names."""
    init = initializer(f"-> {axes}", module.depth_mult)
    bias = module.param("bias", init, x.shape[x.ndim - len(axes.split()) :])
    return x + jnp.broadcast_to(bias, x.shape)


def readout(
    model: Model,
    num_outputs: int,
    fan_in: str = "width",
    fan_out: str = "classes",
    name: str = "readout",
    width: int | None = None,
) -> Dense:
    """Returns the last layer, with the output multiplier.

    It starts at zero, or with `model.readout_init = "lecun"` at normal weights of
    `readout_std`: logits then have size 1 at the base width, and at larger ones the
    same size in the standard parametrization and 1/√(width/base width) of it in μP.
    Its bias starts at zero in either case.

    `width` is the size of the axis `fan_in`, needed unless its ratio to the base model
    is that of the model's width.
    """
    scale = model.rules.forward_scale(width or model.width, model.base_width)
    return Dense(
        num_outputs,
        fan_in=fan_in,
        fan_out=fan_out,
        scale=scale,
        drawn=model.readout_init == "lecun",
        name=name,
    )


class Conv(nn.Module):
    """A two-dimensional convolution `[B, h, w, c]`, padded as "SAME".

    Computed as a matrix product of patches: every particle has its own kernel, and a
    vmapped convolution becomes a grouped one, which few backends do fast. The product
    also compiles faster.
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
        axes = f"kernel kernel {self.fan_in} -> channels"
        shape = (size, size, x.shape[-1], self.features)
        kernel: Any = self.param("kernel", initializer(axes, self.depth_mult), shape)
        patches = _patches(x.astype(kernel.dtype), size, self.stride)
        out = patches @ kernel.reshape(-1, self.features)
        if self.use_bias:
            out = add_bias(self, out, "channels")
        return record(self, "out", out)


def check_images(x: jax.Array) -> None:
    """Raises ValueError if these are not images `[B, height, width, channels]`."""
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(
            f"inputs of shape {x.shape[1:]} must be images [height, width, channels]"
        )


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Cuts into patches: `[B, h, w, c]` to `[B, h/patch, w/patch, patch, patch, c]`."""
    num, height, width, channels = x.shape
    cut = x.reshape(num, height // patch, patch, width // patch, patch, channels)
    return cut.swapaxes(2, 3)


def depth_to_space(x: jax.Array) -> jax.Array:
    """Inverts `space_to_depth`."""
    num, height, width, patch, _, channels = x.shape
    return x.swapaxes(2, 3).reshape(num, height * patch, width * patch, channels)


def _patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Gathers the inputs of each output, `[B, ⌈h/stride⌉, ⌈w/stride⌉, size² · c]`."""
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
    """Layer or group normalization with a learned gain and shift.

    Layer normalization is over the last axis; group normalization, in `groups` groups
    of channels, is over positions too.
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
    """Looks up rows `[..., features]` of a table; unknown tokens become NaN."""
    none = table.shape[0]
    return jnp.take(table, jnp.where(tokens < 0, none, tokens), axis=0)


class Embedding(nn.Module):
    """A table of rows `[rows, width]`, annotated `rows_name -> width`.

    `std` is the standard deviation of its entries at the start, which must not depend
    on the width; below 1 if the table is a readout too.
    """

    rows: int
    features: int
    rows_name: str = "vocab"
    std: float = 1.0

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the table."""
        axes = f"{self.rows_name} -> width"
        table_init = initializer(axes)
        if self.std != 1.0:
            table_init = named(nn.initializers.normal(self.std), axes)
        table: Any = self.param("table", table_init, (self.rows, self.features))
        return table
