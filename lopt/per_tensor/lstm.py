"""An LSTM over tensors: one row of the batch is one tensor.

The cell is haiku's, whose weights load as they are: gates i, g, f, o in this order, and
an offset of 1 on the forget gate beside its bias.

References:
    Hochreiter and Schmidhuber, Neural Computation 9 (1997); Jozefowicz et al., ICML
    2015, for the forget gate's offset.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopt import dense
from lopt.dense import Layer


class LSTMState(NamedTuple):
    """Memory of `R` tensors."""

    hidden: jax.Array  # [R, H]
    cell: jax.Array  # [R, H]


def init(key: jax.Array, num_inputs: int, hidden_size: int) -> dict[str, jax.Array]:
    """Draws the gates; the first state of every tensor, part of θ, is zero.

    Returns:
        `{"kernel": [in + H, 4H], "bias": [4H], "hidden": [H], "cell": [H]}`.
    """
    return {
        **dense.init(key, num_inputs + hidden_size, 4 * hidden_size),
        "hidden": jnp.zeros(hidden_size),
        "cell": jnp.zeros(hidden_size),
    }


def initial_state(theta: Layer, num_rows: int) -> LSTMState:
    """Repeats the learned first state for each of `num_rows` tensors."""

    def repeat(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(x)[None], (num_rows, x.shape[0]))

    return LSTMState(repeat(theta["hidden"]), repeat(theta["cell"]))


def apply(
    theta: Layer, inputs: jax.Array, state: LSTMState
) -> tuple[jax.Array, LSTMState]:
    """Takes one step on inputs `[R, in]`; returns outputs `[R, H]` and next state."""
    gates = dense.apply(theta, jnp.concatenate([inputs, state.hidden], axis=-1))
    i, g, f, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1.0) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return hidden, LSTMState(hidden, cell)
