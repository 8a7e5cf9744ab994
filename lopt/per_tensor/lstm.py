"""A long short-term memory over tensors: one row of the batch is one tensor.

The gates are i, g, f, o in this order, and the forget gate has an offset of 1 outside
of its bias: the cell of haiku, whose weights therefore load as they are.

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
    """Gates, and the state in which every tensor begins (zero, but part of θ).

    Returns:
        `{"kernel": [in + H, 4H], "bias": [4H], "hidden": [H], "cell": [H]}`.
    """
    return {
        **dense.init(key, num_inputs + hidden_size, 4 * hidden_size),
        "hidden": jnp.zeros(hidden_size),
        "cell": jnp.zeros(hidden_size),
    }


def initial_state(theta: Layer, num_rows: int) -> LSTMState:
    """The learned first state, the same for each of `num_rows` tensors."""

    def repeat(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(x)[None], (num_rows, x.shape[0]))

    return LSTMState(repeat(theta["hidden"]), repeat(theta["cell"]))


def apply(
    theta: Layer, inputs: jax.Array, state: LSTMState
) -> tuple[jax.Array, LSTMState]:
    """One step on inputs `[R, in]`: outputs `[R, H]` and the next state."""
    gates = dense.apply(theta, jnp.concatenate([inputs, state.hidden], axis=-1))
    i, g, f, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1.0) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return hidden, LSTMState(hidden, cell)
