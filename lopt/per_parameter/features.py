"""Per-parameter features, declared as data: name, formula, and what a value depends on.

Features are computed from gradient, parameter, accumulators and time. A learned
optimizer has a `FeatureSet`, in the order of the rows of its first layer.

`per` says whether a feature differs from element to element, by row or by column alone
(in a tensor of rank ≥ 2), or by step alone; `first_layer` saves work accordingly.

Each feature, but for those of time, is divided by its root mean square over the tensor,
so none depends on the scale of the loss or of the parametrization.

References:
    Metz et al., arXiv:2203.11860, Appendix A (`SMALL_FC`); Metz et al.,
    arXiv:1810.10180 (`MLP_LOPT`); Metz et al., VeLO, arXiv:2211.09760, Appendix B
    (`VELO`). The orders are those of google/learned_optimization.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lopt.clipping import reciprocal_root
from lopt.per_parameter import accumulators
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import Epsilons

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
"""Steps at which a feature of time changes sign."""

Per = Literal["element", "row", "column", "step"]
Count = Literal["one", "momentum", "second_moment", "factored", "time"]


class Quantities:
    """Inputs of the features of one tensor, accumulators up to date."""

    def __init__(
        self,
        grad: jax.Array,
        param: jax.Array,
        state: TensorState,
        step: jax.Array,
        epsilons: Epsilons,
        axes: tuple[int, int] | None = None,
        factors: tuple[jax.Array, jax.Array] | None = None,
    ) -> None:
        """Takes gradient and parameter `[*S]` and the updates done before.

        For a part of a tensor, axes and factors are those of the whole.
        """
        self.grad = grad
        self.param = param
        self.state = state
        self.step = step
        self.epsilons = epsilons
        self.axes = accumulators.factored_axes(grad.shape) if axes is None else axes
        self._factors = factors

    def factors(self) -> tuple[jax.Array, jax.Array]:
        """Returns row and column factors (see `accumulators.factors`) at rank ≥ 2."""
        if self._factors is None:
            assert self.axes is not None, "a vector has no factors"
            self._factors = accumulators.factors(self.state, self.axes, self.epsilons)
        return self._factors

    def root(self) -> jax.Array:
        """Returns 1/√second moment, `[1, *S]`."""
        moment = accumulators.present(self.state.second_moment, "second moment")
        return reciprocal_root(moment + self.epsilons.second_moment)

    def precondition(self, values: jax.Array, floor: float) -> jax.Array:
        """Divides `[*S]` or `[K, *S]` by the root of the factored moments, `[K, *S]`.

        `floor` is added to the moment of a vector, which is not factored.
        """
        values = values if values.ndim > self.grad.ndim else values[None]
        moment = accumulators.present(self.state.row, "factored moment")
        if self.axes is None:
            return values * reciprocal_root(moment + floor)
        d1, d0 = self.axes
        row, column = self.factors()
        return values * jnp.expand_dims(row, 1 + d0) * jnp.expand_dims(column, 1 + d1)

    def factored_moment(self, per: Per) -> jax.Array:
        """Returns mean squares by row or by column `[K, ...]`; all for a vector."""
        column = per == "column" and self.axes is not None
        moment = self.state.column if column else self.state.row
        return accumulators.present(moment, "factored moment")


Formula = Callable[[Quantities, Per], jax.Array]


@dataclasses.dataclass(frozen=True)
class Feature:
    """One kind of feature: one number, or one for each decay."""

    name: str
    per: Per
    formula: Formula
    """Computes `[count, *S]`, by row `[count, *S without d0]`, by step `[count]`.
    Features of row and column with the same formula are equal for vectors."""
    count: Count = "one"

    def names(self, counts: Counts) -> tuple[str, ...]:
        """Returns a name for each number."""
        if self.count == "one":
            return (self.name,)
        ends = TIME_SCALES if self.count == "time" else range(counts.of(self.count))
        return tuple(f"{self.name}_{end}" for end in ends)


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of decays of the accumulators."""

    momentum: int
    second_moment: int = 0
    factored: int = 0

    def of(self, count: Count) -> int:
        """Returns how many numbers a feature has."""
        if count == "one":
            return 1
        return len(TIME_SCALES) if count == "time" else getattr(self, count)


def _root_moment(q: Quantities, per: Per) -> jax.Array:
    return reciprocal_root(q.factored_moment(per) + q.epsilons.row_col)


def _factored_gradient(q: Quantities, per: Per) -> jax.Array:
    del per
    moment = accumulators.present(q.state.row, "factored moment")
    if q.axes is None:
        floor = q.epsilons.factored
        return q.grad[None] * reciprocal_root(jnp.maximum(moment + floor, floor))
    return q.precondition(q.grad, 0.0)


def _time(q: Quantities, per: Per) -> jax.Array:
    del per
    return time_features(q.step, q.state.momentum.dtype)


def time_features(step: jax.Array, dtype: Any) -> jax.Array:
    """Returns `tanh(step/scale − 1)` for 11 scales; `step` updates are done before."""
    scales = jnp.asarray(TIME_SCALES, dtype)
    return jnp.tanh(step.astype(dtype) / scales - 1.0)


CLIPPED_TO = 0.1
"""Bound of `clipped_gradient`."""

GRADIENT = Feature("gradient", "element", lambda q, _: q.grad[None])
CLIPPED_GRADIENT = Feature(
    "clipped_gradient",
    "element",
    lambda q, _: jnp.clip(q.grad, -CLIPPED_TO, CLIPPED_TO)[None],
)
PARAMETER = Feature("parameter", "element", lambda q, _: q.param[None])
MOMENTUM = Feature("momentum", "element", lambda q, _: q.state.momentum, "momentum")
SECOND_MOMENT = Feature(
    "second_moment",
    "element",
    lambda q, _: accumulators.present(q.state.second_moment, "second moment"),
    "second_moment",
)
NORMALIZED_MOMENTUM = Feature(
    "normalized_momentum",
    "element",
    lambda q, _: q.state.momentum * q.root(),
    "momentum",
)
RECIPROCAL_ROOT = Feature(
    "reciprocal_root", "element", lambda q, _: q.root(), "second_moment"
)
NORMALIZED_GRADIENT = Feature(
    "normalized_gradient",
    "element",
    lambda q, _: q.grad[None] * q.root(),
    "second_moment",
)
FACTORED_GRADIENT = Feature(
    "factored_gradient", "element", _factored_gradient, "factored"
)
ROW = Feature("row", "row", Quantities.factored_moment, "factored")
COLUMN = Feature("column", "column", Quantities.factored_moment, "factored")
RECIPROCAL_ROOT_ROW = Feature("reciprocal_root_row", "row", _root_moment, "factored")
RECIPROCAL_ROOT_COLUMN = Feature(
    "reciprocal_root_column", "column", _root_moment, "factored"
)
FACTORED_MOMENTUM = Feature(
    "factored_momentum",
    "element",
    lambda q, _: q.precondition(q.state.momentum, q.epsilons.one_dimensional),
    "factored",
)
TIME = Feature("time", "step", _time, "time")


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Inputs of a network, in order."""

    features: tuple[Feature, ...]

    def names(self, counts: Counts) -> tuple[str, ...]:
        """Returns a name for each input."""
        return sum((feature.names(counts) for feature in self.features), ())

    def rows(self, counts: Counts) -> list[tuple[Feature, slice]]:
        """Returns each feature with its rows of the first layer."""
        found, start = [], 0
        for feature in self.features:
            stop = start + counts.of(feature.count)
            found.append((feature, slice(start, stop)))
            start = stop
        return found


SMALL_FC = FeatureSet(
    (
        *(GRADIENT, PARAMETER, MOMENTUM, SECOND_MOMENT, NORMALIZED_MOMENTUM),
        *(RECIPROCAL_ROOT, FACTORED_GRADIENT, ROW, COLUMN, RECIPROCAL_ROOT_ROW),
        *(RECIPROCAL_ROOT_COLUMN, FACTORED_MOMENTUM, TIME),
    )
)
"""39 inputs with three decays."""

MLP_LOPT = FeatureSet((GRADIENT, PARAMETER, MOMENTUM, TIME))
"""19 inputs with six decays."""

VELO = FeatureSet(
    (
        *(GRADIENT, CLIPPED_GRADIENT, PARAMETER, MOMENTUM, SECOND_MOMENT),
        *(NORMALIZED_MOMENTUM, RECIPROCAL_ROOT, FACTORED_GRADIENT),
        *(NORMALIZED_GRADIENT, ROW, COLUMN, RECIPROCAL_ROOT_ROW),
        *(RECIPROCAL_ROOT_COLUMN, FACTORED_MOMENTUM),
    )
)
"""30 inputs with three decays; those of Celo and CELO2 too."""


def counts_of(state: TensorState) -> Counts:
    """Returns the numbers of decays of a tensor's accumulators."""

    def of(x: jax.Array | None) -> int:
        return 0 if x is None else x.shape[0]

    return Counts(of(state.momentum), of(state.second_moment), of(state.row))


def broadcast_axis(q: Quantities, per: Per) -> int | None:
    """Returns the axis of `[F, *S]` along which a feature is constant, if any."""
    if q.axes is None or per not in ("row", "column"):
        return None
    d1, d0 = q.axes
    return 1 + (d0 if per == "row" else d1)


def normalizers(values: jax.Array, epsilons: Epsilons) -> jax.Array:
    """Returns 1/root mean square `[F]` of features `[F, ...]`.

    An axis on which a feature does not depend may have size 1.
    """
    mean_square = jnp.mean(values**2, axis=tuple(range(1, values.ndim)))
    return reciprocal_root(mean_square + epsilons.normalizer)


def all_features(features: FeatureSet, q: Quantities) -> jax.Array:
    """Returns every normalized feature of every element, `[*S, F]`, for inspection."""
    shape = q.grad.shape
    columns = []
    for feature in features.features:
        values = feature.formula(q, feature.per)
        if feature.per == "step":
            values = values.reshape((-1,) + (1,) * len(shape))
        else:
            axis = broadcast_axis(q, feature.per)
            values = values if axis is None else jnp.expand_dims(values, axis)
            scale = normalizers(values, q.epsilons)
            values = values * scale.reshape((-1,) + (1,) * len(shape))
        columns.append(jnp.broadcast_to(values, (values.shape[0], *shape)))
    return jnp.moveaxis(jnp.concatenate(columns), 0, -1)
