"""Layers whose parameters carry their axis names, so their μP role is never guessed."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from parametrization.rules import Rules, initializer


class Dense(nn.Module):
    """`x @ kernel + bias`, the kernel annotated `fan_in -> fan_out`."""

    features: int
    fan_in: str
    fan_out: str = "width"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., inputs]` to `[..., features]`."""
        kernel: Any = self.param(
            "kernel",
            initializer(f"{self.fan_in} -> {self.fan_out}"),
            (x.shape[-1], self.features),
        )
        bias: Any = self.param(
            "bias", initializer(f"-> {self.fan_out}"), (self.features,)
        )
        product = x @ kernel
        return product + jnp.broadcast_to(bias, product.shape)


class Readout(nn.Module):
    """A zero-initialized last layer; in μP its product is scaled by base/fan-in.

    The bias lies outside the multiplier, so it is a vector like any other.
    """

    features: int
    base_fan_in: int
    rules: Rules
    fan_in: str = "width"
    fan_out: str = "classes"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., width]` to `[..., features]`."""
        kernel: Any = self.param(
            "kernel",
            initializer(f"{self.fan_in} -> {self.fan_out}"),
            (x.shape[-1], self.features),
        )
        bias: Any = self.param(
            "bias", initializer(f"-> {self.fan_out}"), (self.features,)
        )
        scale = self.rules.forward_scale(x.shape[-1], self.base_fan_in)
        product = scale * (x @ kernel)
        return product + jnp.broadcast_to(bias, product.shape)
