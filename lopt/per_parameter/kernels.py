"""The per-parameter network for GPUs: one Pallas kernel for a matrix.

Features, network and step of a tile of parameters stay in registers: the kernel reads
gradient, parameter and accumulators once and writes the step. XLA computes before it
what depends on the whole tensor: the accumulators, the factors of rows and columns,
their part of the first layer, and the features' normalizers, folded into its weights.

It is written for Triton: sizes are powers of two (units are padded with zeros), every
access is masked, nothing is concatenated. Hidden layers are products in full float32
precision, or of bfloat16 on tensor cores. `vmap` over particles and over equal tensors
becomes an axis of the grid.

**It has not been run on a GPU.** The tests run it in interpret mode against the plain
form, and lower it to Triton for CUDA, which shows that Triton knows every operation,
not that the result is right or fast there.

Indices are 32-bit: decays × elements must stay below 2³¹.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lopt.per_parameter import features, first_layer
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.features import Counts, Feature, FeatureSet, Quantities
from lopt.per_parameter.precision import Precision, rounded

TILE = 128
"""Parameters of a tile."""

SMALLEST_PRODUCT = 16
"""Triton multiplies no smaller matrices."""


@functools.cache
def program(
    feature_set: FeatureSet,
    epsilons: Epsilons,
    exp_mult: float,
    precision: Precision = "float32",
    interpret: bool | None = None,
) -> Callable[..., jax.Array]:
    """Builds (layers, gradient, parameter, state, step) -> displacement `[R, C]`.

    The layers have one or two outputs. By default it is interpreted without a GPU.
    """
    if interpret is None:
        interpret = jax.default_backend() != "gpu"

    def displacement(
        layers: dict[str, dict[str, jax.Array]],
        grad: jax.Array,
        param: jax.Array,
        state: TensorState,
        step: jax.Array,
    ) -> jax.Array:
        q = Quantities(grad, param, state, step, epsilons)
        parts = first_layer.split(layers["layer_0"], feature_set, q)
        terms = [feature for feature, _ in parts.places[None]]
        rows, columns = grad.shape
        wide = min(TILE, pl.next_power_of_2(columns))
        tile = (TILE // wide, wide)
        return pl.pallas_call(
            functools.partial(
                _kernel, terms, epsilons, exp_mult, precision, tile, (rows, columns)
            ),
            out_shape=jax.ShapeDtypeStruct((grad.size,), grad.dtype),
            grid=(pl.cdiv(rows, tile[0]), pl.cdiv(columns, tile[1])),
            compiler_params=triton.CompilerParams(num_warps=4),
            interpret=interpret,
        )(_inputs(layers, parts, q, precision)).reshape(grad.shape)

    return displacement


def _inputs(
    layers: dict[str, dict[str, jax.Array]],
    parts: first_layer.Split,
    q: Quantities,
    precision: Precision,
) -> dict[str, Any]:
    """Returns the kernel's inputs, flat; units padded, weights rounded."""
    assert q.axes is not None
    rows, columns = q.grad.shape
    size = pl.next_power_of_2(parts.bias.shape[0])
    size = max(size, SMALLEST_PRODUCT)
    # One by one, so that XLA builds no array of all features.
    normalizers = jnp.concatenate(
        [
            features.normalizers(feature.formula(q, feature.per), q.epsilons)
            for feature, _ in parts.places[None]
        ]
    )
    kernel = normalizers[:, None] * first_layer.kernel_of(parts.places[None])
    hidden = parts.bias.shape[0]
    by_row, by_column = jnp.zeros((hidden, rows, 1)), jnp.zeros((hidden, 1, columns))
    for axis, x in first_layer.contributions(parts, q):
        if axis == 0:
            by_column = by_column + x
        else:
            by_row = by_row + jnp.broadcast_to(x, by_row.shape)
    found = {
        "grad": q.grad.reshape(-1),
        "param": q.param.reshape(-1),
        "momentum": q.state.momentum.reshape(-1),
        "by_row": _padded(by_row.reshape(hidden, rows).T, rows, size).reshape(-1),
        "by_column": _padded(
            by_column.reshape(hidden, columns).T, columns, size
        ).reshape(-1),
        "first": _padded(rounded(kernel, precision), len(kernel), size).reshape(-1),
        "kernels": [],
        "biases": [],
    }
    if q.state.second_moment is not None:
        found["second_moment"] = q.state.second_moment.reshape(-1)
    if q.state.row is not None:
        row, column = q.factors()
        by_rows, by_columns = (row, column) if q.axes == (0, 1) else (column, row)
        found["row_factors"] = by_rows.reshape(-1)
        found["column_factors"] = by_columns.reshape(-1)
    for i in range(1, len(layers) - 1):
        layer = layers[f"layer_{i}"]
        kernel = rounded(layer["kernel"], precision)
        found["kernels"].append(_padded(kernel, size, size).reshape(-1))
        found["biases"].append(_padded(layer["bias"][None], 1, size).reshape(-1))
    last = layers[f"layer_{len(layers) - 1}"]
    outputs = last["bias"].shape[0]
    kernel = rounded(last["kernel"], precision)
    found["last"] = _padded(kernel.T, outputs, size).reshape(-1)
    found["last_bias"] = last["bias"]
    return found


def _padded(x: jax.Array, rows: int, columns: int) -> jax.Array:
    return jnp.pad(x, ((0, rows - x.shape[0]), (0, columns - x.shape[1])))


class _Tile(Quantities):
    """A tile, flat, with one decay of each accumulator: `[1, T]`."""

    def precondition(self, values: jax.Array, floor: float) -> jax.Array:
        del floor  # only vectors need it
        values = values if values.ndim > self.grad.ndim else values[None]
        row, column = self.factors()
        return values * row * column


def _kernel(
    terms: list[Feature],
    epsilons: Epsilons,
    exp_mult: float,
    precision: Precision,
    tile: tuple[int, int],
    shape: tuple[int, int],
    refs: dict[str, Any],
    out_ref: Any,
) -> None:
    """Computes one tile of the grid."""
    place = jnp.arange(TILE, dtype=jnp.int32)
    row = pl.program_id(0) * tile[0] + place // tile[1]
    column = pl.program_id(1) * tile[1] + place % tile[1]
    inside = (row < shape[0]) & (column < shape[1])
    where = row * shape[1] + column
    counts = _counts(refs, shape)
    size = refs["first"].shape[0] // sum(counts.of(f.count) for f in terms)
    units = jnp.arange(size, dtype=jnp.int32)

    def along(name: str, index: jax.Array) -> jax.Array:
        at = index[:, None] * size + units[None, :]
        mask = jnp.broadcast_to(inside[:, None], at.shape)
        return triton.load(refs[name].at[at], mask=mask, other=0.0)

    hidden = along("by_row", row) + along("by_column", column)
    values = _features(terms, epsilons, refs, shape, (row, column, where, inside))
    for k, value in enumerate(values):
        weights = triton.load(refs["first"].at[k * size + units])
        hidden += _narrowed(value, precision)[:, None] * weights[None, :]
    square = units[:, None] * size + units[None, :]
    for kernel, bias in zip(refs["kernels"], refs["biases"], strict=True):
        weights = triton.load(kernel.at[square])
        hidden = _product(jnp.maximum(hidden, 0.0), weights, precision)
        hidden += triton.load(bias.at[units])[None, :]
    active = _narrowed(jnp.maximum(hidden, 0.0), precision)
    outputs = [
        jnp.sum(active * triton.load(refs["last"].at[j * size + units])[None, :], 1)
        + refs["last_bias"][j]
        for j in range(refs["last_bias"].shape[0])
    ]
    moved = first_layer.combine(outputs, exp_mult)
    triton.store(out_ref.at[where], moved, mask=inside)


def _narrowed(x: jax.Array, precision: Precision) -> jax.Array:
    """Rounds as `precision.rounded`, in operations that Triton knows."""
    return x if precision == "float32" else x.astype(jnp.bfloat16).astype(x.dtype)


def _product(x: jax.Array, weights: jax.Array, precision: Precision) -> jax.Array:
    if precision == "float32":
        return jnp.dot(x, weights, precision=jax.lax.Precision.HIGHEST)
    return jnp.dot(
        x.astype(jnp.bfloat16),
        weights.astype(jnp.bfloat16),
        preferred_element_type=x.dtype,
    )


def _counts(refs: dict[str, Any], shape: tuple[int, int]) -> Counts:
    """Returns the numbers of decays of the accumulators."""

    def of(name: str, length: int) -> int:
        return refs[name].shape[0] // length if name in refs else 0

    elements = shape[0] * shape[1]
    return Counts(
        of("momentum", elements),
        of("second_moment", elements),
        of("row_factors", shape[0]),
    )


def _features(
    terms: list[Feature],
    epsilons: Epsilons,
    refs: dict[str, Any],
    shape: tuple[int, int],
    at: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
) -> list[jax.Array]:
    """Returns the elementwise features of a tile, `[T]` each, in the kernel's order.

    Formulas see one decay at a time: the size of a register array is a power of two.
    """
    row, column, where, inside = at
    elements, counts = shape[0] * shape[1], _counts(refs, shape)

    @functools.cache
    def load(name: str, i: int) -> jax.Array | None:
        if name not in refs:
            return None
        length, index = {
            "row_factors": (shape[0], row),
            "column_factors": (shape[1], column),
        }.get(name, (elements, where))
        # An accumulator may have fewer decays, which no formula pairs with others.
        if (i + 1) * length > refs[name].shape[0]:
            i = 0
        return triton.load(refs[name].at[i * length + index], mask=inside, other=0.0)

    def one(i: int) -> _Tile:
        def lifted(name: str) -> jax.Array | None:
            x = load(name, i)
            return None if x is None else x[None]

        grad, param = load("grad", 0), load("param", 0)
        momentum = lifted("momentum")
        assert grad is not None and param is not None and momentum is not None
        factors = lifted("row_factors"), lifted("column_factors")
        # Formulas ask whether the factored moment is there; they use the factors.
        state = TensorState(momentum, lifted("second_moment"), *factors)
        never = jnp.zeros([], jnp.int32)
        given = None if factors[0] is None else factors
        return _Tile(grad, param, state, never, epsilons, (0, 1), given)  # pyright: ignore

    return [
        feature.formula(one(i), feature.per)[0]
        for feature in terms
        for i in range(counts.of(feature.count))
    ]
