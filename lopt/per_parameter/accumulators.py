"""Running averages of gradients: momentum, second moment, factored second moment.

Each is averaged with several decays at once; the decay axis `K` stands in front of the
tensor's own axes. A decay is learned through an offset o that scales its complement,
1 − decay = (1 − d₀)·exp(10·o), clipped to [0, 1].

The factored moment keeps, for a tensor of rank ≥ 2, the mean square over its largest
axis d0 (`row`) and over its second largest axis d1 (`column`), as Adafactor does
(Shazeer and Stern, arXiv:1804.04235); a vector keeps the whole moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopt.clipping import reciprocal_root
from lopt.per_parameter.epsilons import Epsilons
from lopt.placement import Blank


class TensorState(NamedTuple):
    """Accumulators of one tensor of shape `S`, decay axis first."""

    momentum: jax.Array  # [K, *S]
    second_moment: jax.Array | None  # [1, *S]; None where it is not averaged
    row: jax.Array | None  # [K, *S without d0]; the whole moment [K, *S] for rank < 2
    column: jax.Array | None  # [K, *S without d1]; None for rank < 2


def present(value: jax.Array | None, name: str) -> jax.Array:
    """Returns an accumulator that a feature needs."""
    assert value is not None, f"a feature needs the {name}, which is not averaged"
    return value


class Complements(NamedTuple):
    """1 − decay of each accumulator, `[K]` each."""

    momentum: jax.Array
    second_moment: jax.Array | None = None
    factored: jax.Array | None = None


def complement(initial_decays: Sequence[float], offsets: jax.Array) -> jax.Array:
    """Returns 1 − decay `[K]` for learned offsets `[K]`, clipped to [0, 1]."""
    initial = jnp.asarray([1.0 - decay for decay in initial_decays], offsets.dtype)
    return jnp.clip(initial * jnp.exp(10.0 * offsets), 0.0, 1.0)


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """Returns the second largest and the largest axis (d1, d0); None for rank < 2.

    Of equal axes the later one counts as larger, so in canonical layout a square matrix
    has d1 = fan-in and d0 = fan-out.
    """
    if len(shape) < 2:
        return None
    order = np.argsort(np.asarray(shape), kind="stable")
    return int(order[-2]), int(order[-1])


def fixed(decays: Sequence[float], dtype: jnp.dtype) -> jax.Array:
    """Returns 1 − decay `[K]` of decays that are not learned."""
    return jnp.asarray([1.0 - decay for decay in decays], dtype)


def total_weight(decay: float, count: jax.Array) -> jax.Array:
    """Returns 1 − decay^count, the sum of an average's weights after `count` updates.

    The decay is Python's: near 1, rounding it to float32 loses the digits that count.
    """
    return -jnp.expm1(count * (math.log(decay) if decay else -math.inf))


def init(
    like: Blank,
    num_decays: int,
    num_second: int = 1,
    num_factored: int | None = None,
) -> TensorState:
    """Returns empty accumulators of a tensor.

    Args:
        like: the tensor, `[*S]`.
        num_decays: number of momenta.
        num_second: number of second moments.
        num_factored: number of factored moments; as many as momenta by default.
    """
    num_factored = num_decays if num_factored is None else num_factored
    axes = factored_axes(like.shape)
    d1, d0 = axes or (None, None)

    def zeros(number: int, without: int | None = None) -> jax.Array | None:
        return like.zeros(number, without=without) if number else None

    return TensorState(
        momentum=like.zeros(num_decays),
        second_moment=zeros(num_second),
        row=zeros(num_factored, d0),
        column=None if axes is None else zeros(num_factored, d1),
    )


def update(
    state: TensorState, grad: jax.Array, complements: Complements, epsilons: Epsilons
) -> TensorState:
    """Averages one more gradient `[*S]`."""
    square = grad * grad
    floored = square + epsilons.gradient_square
    axes = factored_axes(grad.shape)
    by_row = by_column = floored
    if axes is not None:
        d1, d0 = axes
        by_row, by_column = floored.mean(d0), floored.mean(d1)
    return TensorState(
        momentum=_average(state.momentum, grad, complements.momentum),
        second_moment=_maybe(state.second_moment, square, complements.second_moment),
        row=_maybe(state.row, by_row, complements.factored),
        column=_maybe(state.column, by_column, complements.factored),
    )


def factors(
    state: TensorState, axes: tuple[int, int], epsilons: Epsilons
) -> tuple[jax.Array, jax.Array]:
    """Returns row and column factors whose product is about 1/√(second moment).

    Returns:
        `[K, *S without d0]` and `[K, *S without d1]`.
    """
    row, column = (present(x, "factored moment") for x in (state.row, state.column))
    d1, d0 = axes
    row_axis = 1 + (d1 if d1 < d0 else d1 - 1)
    row_mean = row.mean(row_axis, keepdims=True)
    relative = row / (row_mean + epsilons.factored)
    return (
        reciprocal_root(jnp.maximum(relative, epsilons.factored)),
        reciprocal_root(jnp.maximum(column, epsilons.factored)),
    )


def _average(old: jax.Array, new: jax.Array, complements: jax.Array) -> jax.Array:
    weight = complements.reshape((-1,) + (1,) * new.ndim)
    return (1.0 - weight) * old + weight * new[None]


def _maybe(
    old: jax.Array | None, new: jax.Array, complements: jax.Array | None
) -> jax.Array | None:
    if old is None or complements is None:
        return None
    return _average(old, new, complements)
