"""Recurrent language models: stacked LSTM or GRU layers over embedded tokens.

The input products of all times are one matrix product before the scan, which contains
only the product with the previous state. Gates are a fixed fan-out axis: a kernel
`width -> gates width` is hidden, and its fan-in is the width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.rules import ADAM_LIKE, Rules, initializer
from tasks.models.base import Model, record
from tasks.models.layers import Dense, Embedding, lookup, readout

Cell = Literal["lstm", "gru"]
State: TypeAlias = tuple[jax.Array, ...]
"""Arrays `[B, width]`: (hidden, cell) of an LSTM, (hidden,) of a GRU."""

GATES: dict[Cell, int] = {"lstm": 4, "gru": 3}
"""Number of gates: input, forget, candidate, output; or reset, update, candidate."""


@configuration
class Recurrent(Model):
    """Predicts the next token from the previous ones: `[B, L]` int32 to `[B, L, V]`.

    An embedding, `depth` recurrent layers that start from zero states, and a readout.
    Tokens outside 0 … V−1 become NaN.
    """

    input_dtype: ClassVar[Any] = jnp.int32

    cell: Cell = "lstm"
    """lstm (Hochreiter and Schmidhuber, 1997, with a forget gate), or gru (Cho et al.,
    arXiv:1406.1078, with the reset gate after the product)."""
    width: int = 64
    """Units of the embedding and of every layer."""
    depth: int = 1
    """Number of recurrent layers."""
    base_width: int = 64
    """Units of the base model, where μP multipliers are 1."""
    rules: Rules = ADAM_LIKE
    """Parametrization; without residual branches CompleteP is the same as μP."""

    def forward(
        self, module: nn.Module, tokens: jax.Array, num_outputs: int
    ) -> jax.Array:
        """Maps tokens `[B, L]` to logits `[B, L, num_outputs]`, causally."""
        if tokens.ndim != 2:
            raise ValueError(f"inputs of shape {tokens.shape} must be tokens [B, L]")
        table = Embedding(num_outputs, self.width, name="embedding")()
        x = record(module, "embedded", lookup(table, tokens))
        for i in range(self.depth):
            x = _Layer(self.cell, self.width, name=f"layer_{i}")(x)
        return readout(self, num_outputs, fan_out="vocab")(x)


class _Layer(nn.Module):
    cell: Cell
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, L, width]` to the hidden states `[B, L, width]`."""
        gates = GATES[self.cell]
        inputs = Dense((gates, self.width), "width", "gates width", name="input")(x)
        init, shape = (
            initializer("width -> gates width"),
            (self.width, *inputs.shape[2:]),
        )
        kernel: Any = self.param("recurrent_kernel", init, shape)
        bias: Any = None
        # Inside the product with the reset gate, unlike the bias of the inputs.
        if self.cell == "gru":
            bias = self.param("recurrent_bias", initializer("-> width"), (self.width,))

        def recurrent(hidden: jax.Array) -> jax.Array:
            """`[..., width]` to `[..., gates, width]`."""
            product = hidden @ kernel.reshape(self.width, -1)
            return product.reshape(*hidden.shape[:-1], gates, self.width)

        def step(state: State, inputs: jax.Array) -> tuple[State, State]:
            product = recurrent(state[0])
            if self.cell == "lstm":
                state = lstm(state, inputs + product)
            else:
                state = gru(state, inputs, product, bias)
            return state, state

        zero = jnp.zeros((x.shape[0], self.width), x.dtype)
        start = (zero, zero) if self.cell == "lstm" else (zero,)
        _, states = jax.lax.scan(step, start, inputs.swapaxes(0, 1))
        for name, states_of in zip(("hidden", "cell"), states, strict=False):
            record(self, name, states_of.swapaxes(0, 1))
        hidden = states[0].swapaxes(0, 1)
        # Recomputed outside the scan, and only if recorded. For a GRU's candidate the
        # sum is that of an open reset gate.
        before = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
        record(self, "gates", inputs + record(self, "recurrent", recurrent(before)))
        return hidden


def lstm(state: State, gates: jax.Array) -> State:
    """Computes the next state of an LSTM.

    1 is added to the forget gate's pre-activation (Jozefowicz et al., ICML 2015) as a
    constant, so that biases start at zero like all vectors.

    Args:
        state: hidden and cell, `[B, width]` each.
        gates: pre-activations `[B, 4, width]`: input, forget, candidate, output.
    """
    _, cell = state
    write, forget, candidate, output = (gates[:, i] for i in range(4))
    cell = jax.nn.sigmoid(forget + 1.0) * cell
    cell = cell + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return jax.nn.sigmoid(output) * jnp.tanh(cell), cell


def gru(
    state: State, inputs: jax.Array, recurrent: jax.Array, bias: jax.Array
) -> State:
    """Computes the next state of a GRU.

    Args:
        state: hidden, `[B, width]`.
        inputs: products of the inputs, `[B, 3, width]`: reset, update, candidate.
        recurrent: products of the hidden state, of the same shape.
        bias: bias `[width]` of the candidate's recurrent product.
    """
    (hidden,) = state
    reset, update = (jax.nn.sigmoid(inputs[:, i] + recurrent[:, i]) for i in range(2))
    product = recurrent[:, 2] + jnp.broadcast_to(bias, hidden.shape)
    candidate = jnp.tanh(inputs[:, 2] + reset * product)
    return ((1.0 - update) * candidate + update * hidden,)
