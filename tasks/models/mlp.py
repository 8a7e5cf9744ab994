"""The multilayer perceptron, in the standard parametrization or in μP."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from parametrization.rules import ADAM_LIKE, Rules
from parametrization.spec import param_specs, unbox
from tasks.models.layers import Dense, readout

Activation = Literal["relu", "tanh", "gelu", "silu"]


@dataclasses.dataclass(frozen=True)
class MLP:
    """Fully connected hidden layers and a readout."""

    widths: tuple[int, ...] = (32, 32)
    """Units of each hidden layer, first to last."""
    base_width: int = 32
    """Units of every hidden layer of the base model, where μP multipliers are 1."""
    rules: Rules = ADAM_LIKE
    """Parametrization: ADAM_LIKE (μP) or STANDARD."""
    activation: Activation = "relu"
    """Nonlinearity after each hidden layer."""

    def __post_init__(self) -> None:
        if not self.widths or any(width < 1 for width in self.widths):
            raise ValueError(
                f"widths = {self.widths} must be positive numbers of units, at least "
                "one layer"
            )
        if self.base_width < 1:
            raise ValueError(f"base_width = {self.base_width} must be positive")
        if self.activation not in get_args(Activation):
            raise ValueError(
                f"activation = {self.activation!r} must be one of "
                f"{', '.join(get_args(Activation))}"
            )

    def init(
        self, key: jax.Array, input_shape: tuple[int, ...], num_outputs: int
    ) -> Any:
        """Initial parameters for inputs `[B, *input_shape]`, as plain arrays."""
        return unbox(self._boxed_init(key, input_shape, num_outputs))

    def specs(self, input_shape: tuple[int, ...], num_outputs: int) -> Any:
        """Specs of the parameters, with the base model beside."""
        base = dataclasses.replace(self, widths=(self.base_width,) * len(self.widths))
        return param_specs(
            lambda key: self._boxed_init(key, input_shape, num_outputs),
            lambda key: base._boxed_init(key, input_shape, num_outputs),
        )

    def apply(self, params: Any, x: jax.Array, num_outputs: int) -> jax.Array:
        """Logits `[B, num_outputs]` of inputs `[B, ...]`."""
        logits: Any = self._module(num_outputs).apply({"params": params}, x)
        return logits

    def _boxed_init(
        self, key: jax.Array, input_shape: tuple[int, ...], num_outputs: int
    ) -> Any:
        inputs = jnp.zeros((1, *input_shape))
        return self._module(num_outputs).init(key, inputs)["params"]

    def _module(self, num_outputs: int) -> _MLPModule:
        return _MLPModule(
            self.widths, self.base_width, self.rules, self.activation, num_outputs
        )


class _MLPModule(nn.Module):
    widths: tuple[int, ...]
    base_width: int
    rules: Rules
    activation: Activation
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = Dense(width, fan_in="width" if i else "pixels", name=f"hidden_{i}")(x)
            x = getattr(nn, self.activation)(x)
        return readout(self.num_outputs, x.shape[-1], self.base_width, self.rules)(x)
