"""The first layer of a per-parameter network, split by what each feature depends on.

The layer is linear in the features, so, exactly:

* features of time fold into the bias;
* features of a row or of a column contribute `A[row] + B[column]`, two vectors;
* at rank < 2, where rows and columns are one, equal features share a row of the kernel;
* normalization multiplies the rows of the weight matrix, not the features.

The elementwise features remain: 16 of small_fc's 39 for rank ≥ 2.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lopt.per_parameter import features
from lopt.per_parameter.features import Feature, FeatureSet, Quantities

Layer = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Split:
    """Features and rows of the kernel, by the axis along which they are constant."""

    bias: jax.Array
    """`[H]`, features of time included."""
    places: dict[int | None, list[tuple[Feature, jax.Array]]]
    """Axis of `[F, *S]` (None: elementwise) -> features and kernels `[count, H]`."""


def split(layer: Layer, feature_set: FeatureSet, q: Quantities) -> Split:
    """Splits the layer; rows of features that are equal at this rank are added."""
    kernel, bias = jnp.asarray(layer["kernel"]), layer["bias"]
    found: dict[int | None, dict[features.Formula, tuple[Feature, jax.Array]]] = {}
    for per in ("element", "row", "column", "step"):
        for feature, rows in feature_set.rows(features.counts_of(q.state)):
            if feature.per != per:
                continue
            if per == "step":
                bias = bias + feature.formula(q, per) @ kernel[rows]
                continue
            terms = found.setdefault(features.broadcast_axis(q, per), {})
            if feature.formula in terms:
                first, weights = terms[feature.formula]
                terms[feature.formula] = (first, weights + kernel[rows])
            else:
                terms[feature.formula] = (feature, kernel[rows])
    assert found, "a network has inputs other than time"
    return Split(bias, {axis: list(terms.values()) for axis, terms in found.items()})


def kernel_of(terms: list[tuple[Feature, jax.Array]]) -> jax.Array:
    """Returns the rows of the kernel, `[F, H]`."""
    return jnp.concatenate([weights for _, weights in terms])


def values_of(terms: list[tuple[Feature, jax.Array]], q: Quantities) -> jax.Array:
    """Returns the features' values, `[F, ...]`."""
    return jnp.concatenate([feature.formula(q, feature.per) for feature, _ in terms])


def contributions(parts: Split, q: Quantities) -> list[tuple[int, jax.Array]]:
    """Returns what rows and columns add to the layer, with the bias; units first.

    Returns:
        For each place the axis of `S` that is 1, and `[H, *S]` with that axis 1.
        Without such a place, axis −1 and the bias with every axis 1.
    """
    bias = parts.bias.reshape((-1,) + (1,) * q.grad.ndim)
    found = []
    for axis, terms in parts.places.items():
        if axis is None:
            continue
        values = values_of(terms, q)
        scaled = features.normalizers(values, q.epsilons)[:, None] * kernel_of(terms)
        product = jnp.expand_dims(jnp.tensordot(scaled.T, values, 1), axis)
        if not found:
            product = product + jnp.broadcast_to(bias, product.shape)
        found.append((axis - 1, product))
    return found or [(-1, bias)]


def combine(outputs: list[jax.Array], exp_mult: float) -> jax.Array:
    """Returns the displacement from a network's one or two outputs."""
    if not exp_mult:
        return outputs[0]
    return outputs[0] * jnp.exp(exp_mult * outputs[1])
