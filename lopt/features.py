"""The per-parameter features of small_fc_lopt: names, order, values, normalization.

Each parameter of a tensor is described by 28 numbers computed from its gradient, value
and accumulators, and by 11 numbers that tell the time. Each of the 28 is divided by its
root mean square over the tensor, so the description does not depend on the scale of the
loss or of the parametrization.

Only some of the 28 differ from element to element: in a tensor of rank ≥ 2 twelve
depend on the row or on the column alone. `Inputs` keeps the three groups apart, which
lets `per_parameter_mlp` do the work of the twelve on vectors.

References:
    Metz et al., arXiv:2203.11860, Appendix A; the order is that of
    `AdafacMLPLOpt` in google/learned_optimization.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopt import accumulators
from lopt.accumulators import TensorState
from lopt.epsilons import Epsilons

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)


def feature_names(num_decays: int) -> tuple[str, ...]:
    """Names of the network's inputs in order, for `num_decays` momentum decays."""

    def each(name: str) -> tuple[str, ...]:
        return tuple(f"{name}_{i}" for i in range(num_decays))

    return (
        "gradient",
        "parameter",
        *each("momentum"),
        "second_moment_0",
        *each("normalized_momentum"),
        "reciprocal_root_0",
        *each("factored_gradient"),
        *each("row"),
        *each("column"),
        *each("reciprocal_root_row"),
        *each("reciprocal_root_column"),
        *each("factored_momentum"),
        *(f"time_{scale}" for scale in TIME_SCALES),
    )


class Inputs(NamedTuple):
    """Features of one tensor before normalization, features first.

    For rank < 2 nothing is row- or column-only: `row` and `column` are `[6, *S]`
    themselves and equal, so they are merged by whoever evaluates the network.
    """

    elementwise: jax.Array  # [10 + 2K, *S] = [16, *S]
    row: jax.Array  # [2K, *S without d0]
    column: jax.Array  # [2K, *S without d1]


class Layout(NamedTuple):
    """Where the rows of the first layer lie, by group of `Inputs`."""

    elementwise: tuple[int, ...]
    row: tuple[int, ...]
    column: tuple[int, ...]
    time: tuple[int, ...]


def layout(num_decays: int) -> Layout:
    """Index of each group's features in `feature_names`."""
    names = feature_names(num_decays)
    groups: dict[str, list[int]] = {
        "elementwise": [],
        "row": [],
        "column": [],
        "time": [],
    }
    for i, name in enumerate(names):
        stem = name.rpartition("_")[0]
        group = {
            "row": "row",
            "reciprocal_root_row": "row",
            "column": "column",
            "reciprocal_root_column": "column",
            "time": "time",
        }.get(stem, "elementwise")
        groups[group].append(i)
    return Layout(**{name: tuple(index) for name, index in groups.items()})


def tensor_inputs(
    grad: jax.Array, param: jax.Array, state: TensorState, epsilons: Epsilons
) -> Inputs:
    """The features of one tensor `[*S]`, its accumulators already updated."""
    root = jax.lax.rsqrt(state.second_moment + epsilons.second_moment)
    axes = accumulators.factored_axes(grad.shape)
    if axes is None or state.column is None:
        moment = state.row
        factor = jax.lax.rsqrt(
            jnp.maximum(moment + epsilons.factored, epsilons.factored)
        )
        factored_grad = grad[None] * factor
        factored_momentum = state.momentum * jax.lax.rsqrt(
            moment + epsilons.one_dimensional
        )
        row = column = _with_roots(moment, epsilons)
    else:
        d1, d0 = axes
        row_factor, column_factor = accumulators.factors(state, axes, epsilons)
        row_factor = jnp.expand_dims(row_factor, 1 + d0)
        column_factor = jnp.expand_dims(column_factor, 1 + d1)
        factored_grad = grad[None] * row_factor * column_factor
        factored_momentum = state.momentum * row_factor * column_factor
        row = _with_roots(state.row, epsilons)
        column = _with_roots(state.column, epsilons)
    elementwise = jnp.concatenate(
        [
            grad[None],
            param[None],
            state.momentum,
            state.second_moment,
            state.momentum * root,
            root,
            factored_grad,
            factored_momentum,
        ]
    )
    return Inputs(elementwise, row, column)


def _with_roots(moment: jax.Array, epsilons: Epsilons) -> jax.Array:
    return jnp.concatenate([moment, jax.lax.rsqrt(moment + epsilons.row_col)])


def normalizers(features: jax.Array, epsilons: Epsilons) -> jax.Array:
    """1/root mean square `[F]` of features `[F, ...]`.

    For a row- or column-only feature the mean over its vector is the mean over the
    tensor, since every entry is repeated equally often.
    """
    mean_square = jnp.mean(features**2, axis=tuple(range(1, features.ndim)))
    return jax.lax.rsqrt(mean_square + epsilons.normalizer)


def time_features(step: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The 11 features `tanh(step/scale − 1)` of `step`, the updates done before."""
    scales = jnp.asarray(TIME_SCALES, dtype)
    return jnp.tanh(step.astype(dtype) / scales - 1.0)


def all_features(inputs: Inputs, step: jax.Array, epsilons: Epsilons) -> jax.Array:
    """Every normalized feature of every element, `[*S, F]`, in order of the names.

    The plain form, for inspection and tests; the optimizer itself never builds it.
    """
    shape = inputs.elementwise.shape[1:]
    index = layout(inputs.row.shape[0] // 2)
    axes = accumulators.factored_axes(shape)
    row, column = inputs.row, inputs.column
    if axes is not None:
        row = jnp.expand_dims(row, 1 + axes[1])
        column = jnp.expand_dims(column, 1 + axes[0])
    time = time_features(step, inputs.elementwise.dtype)
    time = time.reshape((-1,) + (1,) * len(shape))
    groups = [
        (index.elementwise, _normalize(inputs.elementwise, epsilons)),
        (index.row, _normalize(row, epsilons)),
        (index.column, _normalize(column, epsilons)),
        (index.time, time),
    ]
    order = sum((i for i, _ in groups), ())
    stacked = jnp.concatenate(
        [jnp.broadcast_to(x, (x.shape[0], *shape)) for _, x in groups]
    )
    return jnp.moveaxis(stacked[jnp.argsort(jnp.asarray(order))], 0, -1)


def _normalize(features: jax.Array, epsilons: Epsilons) -> jax.Array:
    scale = normalizers(features, epsilons)
    return features * scale.reshape((-1,) + (1,) * (features.ndim - 1))
