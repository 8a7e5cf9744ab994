"""A small network applied to every parameter of a tensor, without building its inputs.

The first layer is linear in the features, so its work is split by what each feature
depends on (exact algebra, no approximation):

* features of time are the same for the whole tensor: they fold into the bias;
* features of a row or of a column alone contribute `A[row] + B[column]`, computed on
  vectors;
* normalization multiplies the rows of the weight matrix, not the features.

What is left is a product of the elementwise features (16 for rank ≥ 2, 22 below) with a
16-row matrix, and the later layers.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from lopt import accumulators, features
from lopt.epsilons import Epsilons
from lopt.features import Inputs


def init(
    key: jax.Array, num_inputs: int, hidden_size: int, hidden_layers: int, outputs: int
) -> dict[str, dict[str, jax.Array]]:
    """Weights: truncated normal (cut at 2σ, σ = 1/√fan-in), biases zero.

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
    return layers


def apply(
    layers: dict[str, dict[str, jax.Array]],
    inputs: Inputs,
    step: jax.Array,
    epsilons: Epsilons,
) -> jax.Array:
    """The network's outputs for one tensor of shape `S`, outputs last: `[*S, out]`."""
    hidden = _first_layer(layers["layer_0"], inputs, step, epsilons)
    for i in range(1, len(layers)):
        layer = layers[f"layer_{i}"]
        product = jnp.maximum(hidden, 0.0) @ layer["kernel"]
        hidden = product + jnp.broadcast_to(layer["bias"], product.shape)
    return hidden


def _first_layer(
    layer: dict[str, jax.Array], inputs: Inputs, step: jax.Array, epsilons: Epsilons
) -> jax.Array:
    kernel = jnp.asarray(layer["kernel"])
    index = features.layout(inputs.row.shape[0] // 2)
    time = features.time_features(step, kernel.dtype)
    bias = layer["bias"] + time @ kernel[jnp.asarray(index.time)]
    row_kernel = kernel[jnp.asarray(index.row)]
    column_kernel = kernel[jnp.asarray(index.column)]
    elementwise_kernel = kernel[jnp.asarray(index.elementwise)]
    axes = accumulators.factored_axes(inputs.elementwise.shape[1:])
    if axes is None:
        merged = jnp.concatenate([inputs.elementwise, inputs.row])
        merged_kernel = jnp.concatenate(
            [elementwise_kernel, row_kernel + column_kernel]
        )
        product = _scaled_product(merged, merged_kernel, epsilons)
        return product + jnp.broadcast_to(bias, product.shape)
    d1, d0 = axes
    row = _scaled_product(inputs.row, row_kernel, epsilons)
    column = _scaled_product(inputs.column, column_kernel, epsilons)
    product = _scaled_product(inputs.elementwise, elementwise_kernel, epsilons)
    row = row + jnp.broadcast_to(bias, row.shape)
    return product + jnp.expand_dims(row, d0) + jnp.expand_dims(column, d1)


def _scaled_product(
    values: jax.Array, kernel: jax.Array, epsilons: Epsilons
) -> jax.Array:
    """Normalized features `[F, *S]` times a kernel `[F, H]`: `[*S, H]`."""
    scaled = features.normalizers(values, epsilons)[:, None] * kernel
    return jnp.moveaxis(values, 0, -1) @ scaled
