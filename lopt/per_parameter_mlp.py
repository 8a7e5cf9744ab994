"""A small network applied to every parameter of a tensor, without building its inputs.

The first layer is linear in the features, so its work is split by what each feature
depends on (exact algebra, no approximation), as the features themselves declare:

* features of time are the same for the whole tensor: they fold into the bias;
* features of a row or of a column alone contribute `A[row] + B[column]`, computed on
  vectors;
* where rows and columns are one (rank < 2), equal features share a row of the kernel;
* normalization multiplies the rows of the weight matrix, not the features.

What is left is a product of the elementwise features (16 of small_fc's 39 for rank ≥ 2)
with as many rows, and the later layers.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from lopt import features
from lopt.epsilons import Epsilons
from lopt.features import FeatureSet, Quantities

Layers = dict[str, dict[str, jax.Array]]


def init(
    key: jax.Array,
    num_inputs: int,
    hidden_size: int,
    hidden_layers: int,
    outputs: int,
    output_scale: float = 1.0,
) -> Layers:
    """Weights: truncated normal (cut at 2σ, σ = 1/√fan-in), biases zero.

    `output_scale` multiplies the last layer's.

    Returns:
        `{"layer_0": {"kernel": [in, out], "bias": [out]}, ...}`.
    """
    sizes = (num_inputs, *[hidden_size] * hidden_layers, outputs)
    layers = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        normal = jax.random.truncated_normal(
            jax.random.fold_in(key, i), -2.0, 2.0, (fan_in, fan_out)
        )
        kernel = normal / jnp.sqrt(fan_in)
        layers[f"layer_{i}"] = {"kernel": kernel, "bias": jnp.zeros(fan_out)}
    last = layers[f"layer_{hidden_layers}"]
    last["kernel"] = output_scale * last["kernel"]
    return layers


def apply(
    layers: Layers,
    feature_set: FeatureSet,
    q: Quantities,
) -> jax.Array:
    """The network's outputs for one tensor of shape `S`, outputs last: `[*S, out]`.

    Args:
        layers: as from `init`; rows of the first kernel in order of the features.
        feature_set: what the inputs are.
        q: what they are computed from.
    """
    hidden = _first_layer(layers["layer_0"], feature_set, q)
    for i in range(1, len(layers)):
        layer = layers[f"layer_{i}"]
        product = jnp.maximum(hidden, 0.0) @ layer["kernel"]
        hidden = product + jnp.broadcast_to(layer["bias"], product.shape)
    return hidden


def _first_layer(
    layer: dict[str, jax.Array],
    feature_set: FeatureSet,
    q: Quantities,
) -> jax.Array:
    kernel, bias = jnp.asarray(layer["kernel"]), layer["bias"]
    # Values and rows of the kernel, by the axis along which the values are constant;
    # of features with one formula and one place the rows are added.
    places: dict[int | None, dict[features.Formula, tuple[jax.Array, jax.Array]]] = {}
    for per in ("element", "row", "column", "step"):
        for feature, rows in feature_set.rows(features.counts_of(q.state)):
            if feature.per != per:
                continue
            if per == "step":
                bias = bias + feature.formula(q, per) @ kernel[rows]
                continue
            axis = features.broadcast_axis(q, per)
            terms = places.setdefault(axis, {})
            if feature.formula in terms:
                values, weights = terms[feature.formula]
                terms[feature.formula] = (values, weights + kernel[rows])
            else:
                terms[feature.formula] = (feature.formula(q, per), kernel[rows])
    total = None
    for axis, terms in places.items():
        values = jnp.concatenate([values for values, _ in terms.values()])
        weights = jnp.concatenate([weights for _, weights in terms.values()])
        if axis is not None:
            values = jnp.expand_dims(values, axis)
        product = _normalized_product(values, weights, q.epsilons)
        if axis is not None and bias is not None:  # added where it costs least
            product, bias = product + jnp.broadcast_to(bias, product.shape), None
        total = product if total is None else _sum(total, product)
    assert total is not None, "a network has inputs other than time"
    return total if bias is None else total + jnp.broadcast_to(bias, total.shape)


def _sum(x: jax.Array, y: jax.Array) -> jax.Array:
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    return jnp.broadcast_to(x, shape) + jnp.broadcast_to(y, shape)


def _normalized_product(
    values: jax.Array, kernel: jax.Array, epsilons: Epsilons
) -> jax.Array:
    """Normalized features `[F, *S]` times a kernel `[F, H]`: `[*S, H]`."""
    scaled = features.normalizers(values, epsilons)[:, None] * kernel
    return jnp.moveaxis(values, 0, -1) @ scaled
