"""Running averages of gradients: momentum, second moment, factored second moment.

Each is averaged with several decays at once; the decay axis `K` stands in front of the
tensor's own axes. A decay is learned through an offset o that scales its complement,
1 − decay = (1 − d₀)·exp(10·o), clipped to [0, 1].

The factored moment keeps, for a tensor of rank ≥ 2, the mean square over its largest
axis d0 (`row`) and over its second largest axis d1 (`column`), as Adafactor does
(Shazeer and Stern, arXiv:1804.04235); a vector keeps the whole moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopt.epsilons import Epsilons


class TensorState(NamedTuple):
    """Accumulators of one tensor of shape `S`, decay axis first."""

    momentum: jax.Array  # [K, *S]
    second_moment: jax.Array  # [1, *S]
    row: jax.Array  # [K, *S without d0]; the whole moment [K, *S] for rank < 2
    column: jax.Array | None  # [K, *S without d1]; None for rank < 2


class Complements(NamedTuple):
    """1 − decay of each accumulator, `[K]` each."""

    momentum: jax.Array
    second_moment: jax.Array
    factored: jax.Array


def complement(initial_decays: Sequence[float], offsets: jax.Array) -> jax.Array:
    """1 − decay `[K]` for learned offsets `[K]`, clipped to [0, 1]."""
    initial = jnp.asarray([1.0 - decay for decay in initial_decays], offsets.dtype)
    return jnp.clip(initial * jnp.exp(10.0 * offsets), 0.0, 1.0)


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """Second largest and largest axis (d1, d0), or None for rank < 2.

    Ties are broken by position: of equal axes the later one counts as larger, so in
    canonical layout a square matrix has d1 = fan-in and d0 = fan-out.
    """
    if len(shape) < 2:
        return None
    order = np.argsort(np.asarray(shape), kind="stable")
    return int(order[-2]), int(order[-1])


def init(shape: tuple[int, ...], num_decays: int, dtype: jnp.dtype) -> TensorState:
    """Empty accumulators of a tensor of shape `S`."""
    axes = factored_axes(shape)
    row, column = shape, None
    if axes is not None:
        d1, d0 = axes
        row = _without(shape, d0)
        column = jnp.zeros((num_decays, *_without(shape, d1)), dtype)
    return TensorState(
        momentum=jnp.zeros((num_decays, *shape), dtype),
        second_moment=jnp.zeros((1, *shape), dtype),
        row=jnp.zeros((num_decays, *row), dtype),
        column=column,
    )


def update(
    state: TensorState, grad: jax.Array, complements: Complements, epsilons: Epsilons
) -> TensorState:
    """Folds one gradient `[*S]` into the averages."""
    square = grad * grad
    floored = square + epsilons.gradient_square
    axes = factored_axes(grad.shape)
    if axes is None or state.column is None:
        row = _average(state.row, floored, complements.factored)
        column = None
    else:
        d1, d0 = axes
        row = _average(state.row, floored.mean(d0), complements.factored)
        column = _average(state.column, floored.mean(d1), complements.factored)
    return TensorState(
        momentum=_average(state.momentum, grad, complements.momentum),
        second_moment=_average(state.second_moment, square, complements.second_moment),
        row=row,
        column=column,
    )


def factors(
    state: TensorState, axes: tuple[int, int], epsilons: Epsilons
) -> tuple[jax.Array, jax.Array]:
    """Row and column factors whose product is about 1/√(second moment).

    Returns:
        `[K, *S without d0]` and `[K, *S without d1]`.
    """
    assert state.column is not None, "a factored tensor has a column moment"
    d1, d0 = axes
    row_axis = 1 + (d1 if d1 < d0 else d1 - 1)
    row_mean = state.row.mean(row_axis, keepdims=True)
    relative = state.row / (row_mean + epsilons.factored)
    return (
        jax.lax.rsqrt(jnp.maximum(relative, epsilons.factored)),
        jax.lax.rsqrt(jnp.maximum(state.column, epsilons.factored)),
    )


def _average(old: jax.Array, new: jax.Array, complements: jax.Array) -> jax.Array:
    weight = complements.reshape((-1,) + (1,) * new.ndim)
    return (1.0 - weight) * old + weight * new[None]


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
