"""The multilayer perceptron, in the standard parametrization or in μP."""

from __future__ import annotations

import dataclasses
from typing import Self

import flax.linen as nn
import jax

from configuration.fields import configuration
from parametrization.rules import ADAM_LIKE, Rules
from tasks.models import base
from tasks.models.base import Activation, Model
from tasks.models.layers import Dense, Norm, readout


@configuration
class MLP(Model):
    """Fully connected hidden layers and a readout; inputs of any shape."""

    widths: tuple[int, ...] = (32, 32)
    """Units of each hidden layer, first to last."""
    base_width: int = 32
    """Units of every hidden layer of the base model, where μP multipliers are 1."""
    rules: Rules = ADAM_LIKE
    """Parametrization; without residual branches CompleteP is the same as μP."""
    activation: Activation = "relu"
    """Nonlinearity after each hidden layer."""
    layer_norm: bool = False
    """Normalizes each hidden layer before its nonlinearity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or min(self.widths) < 1:
            raise ValueError(
                f"widths = {self.widths} must be positive numbers of units, at least "
                "one layer"
            )
        if max(self.widths) > base.LARGEST:
            raise ValueError(f"widths = {self.widths} must be at most {base.LARGEST:,}")

    @property
    def width(self) -> int:
        """Units of the first hidden layer."""
        return self.widths[0]

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return self.widths

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.widths)

    def at_width(self, width: int) -> Self:
        """Returns as many layers of `width` units each."""
        return dataclasses.replace(self, widths=(width,) * self.depth)

    def at_depth(self, depth: int) -> Self:
        """Returns `depth` layers as wide as the first."""
        return dataclasses.replace(self, widths=(self.width,) * depth)

    def forward(self, module: nn.Module, x: jax.Array, num_outputs: int) -> jax.Array:
        """Maps `[B, ...]` to logits `[B, num_outputs]`."""
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = Dense(width, fan_in="width" if i else "pixels", name=f"hidden_{i}")(x)
            if self.layer_norm:
                x = Norm(name=f"norm_{i}")(x)
            x = base.activation(self.activation)(x)
        return readout(self, num_outputs, width=x.shape[-1])(x)
