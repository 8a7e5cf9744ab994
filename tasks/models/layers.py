"""Layers whose parameters carry their axis names, so their μP role is never guessed."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from parametrization.rules import Rules, initializer


class Dense(nn.Module):
    """`scale · (x @ kernel) + bias`, the kernel annotated `fan_in -> fan_out`.

    The bias lies outside the multiplier, so it is a vector like any other.
    """

    features: int
    fan_in: str
    fan_out: str = "width"
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., inputs]` to `[..., features]`."""
        kernel_init = initializer(f"{self.fan_in} -> {self.fan_out}")
        shape = (x.shape[-1], self.features)
        kernel: Any = self.param("kernel", kernel_init, shape)
        bias_init = initializer(f"-> {self.fan_out}")
        bias: Any = self.param("bias", bias_init, (self.features,))
        product = self.scale * (x @ kernel)
        return product + jnp.broadcast_to(bias, product.shape)


def readout(
    num_outputs: int, width: int, base_width: int, rules: Rules, name: str = "readout"
) -> Dense:
    """The last layer: zero-initialized, in μP its product scaled by base/fan-in."""
    scale = rules.forward_scale(width, base_width)
    return Dense(num_outputs, fan_in="width", fan_out="classes", scale=scale, name=name)
