"""A small network applied to every parameter of a tensor, without building its inputs.

The first layer is split by what each feature depends on (`first_layer`). `apply` is the
plain form; `displacement` combines two outputs as most rules do, in the form that suits
the machine and the tensor (`forms`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lopt import dense
from lopt.per_parameter import blocked, features, first_layer, forms, kernels
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.features import FeatureSet, Quantities
from lopt.per_parameter.forms import Execution, Form
from lopt.per_parameter.precision import Precision, product

Layers = dict[str, dict[str, jax.Array]]


def init(
    key: jax.Array,
    num_inputs: int,
    hidden_size: int,
    hidden_layers: int,
    outputs: int,
    output_scale: float = 1.0,
) -> Layers:
    """Draws weights, truncated normal (cut at 2σ, σ = 1/√fan-in); biases are zero.

    `output_scale` multiplies the last layer's.

    Returns:
        `{"layer_0": {"kernel": [in, out], "bias": [out]}, ...}`.
    """
    sizes = (num_inputs, *[hidden_size] * hidden_layers, outputs)
    return {
        f"layer_{i}": dense.init(
            jax.random.fold_in(key, i),
            fan_in,
            fan_out,
            output_scale if i == hidden_layers else 1.0,
        )
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes))
    }


def pass_on(layers: Layers, feature: int, scale: float) -> Layers:
    """Returns the layers, the first output increased by `scale` times a feature.

    The first two units of each hidden layer carry the feature's positive and negative
    part, and nothing else.
    """
    signs = jnp.array([1.0, -1.0])
    found, last = {}, len(layers) - 1
    for i in range(last + 1):
        kernel, bias = layers[f"layer_{i}"]["kernel"], layers[f"layer_{i}"]["bias"]
        if i < last:
            kernel, bias = kernel.at[:, :2].set(0.0), bias.at[:2].set(0.0)
        if i == 0:
            kernel = kernel.at[feature, :2].set(signs)
        elif i < last:
            kernel = kernel.at[:2, :2].set(jnp.eye(2))
        else:
            kernel = kernel.at[:2, 0].set(scale * signs)
        found[f"layer_{i}"] = {"kernel": kernel, "bias": bias}
    return found


def displacement(
    layers: Layers,
    feature_set: FeatureSet,
    q: Quantities,
    exp_mult: float,
    execution: Execution,
) -> jax.Array:
    """Returns `direction · exp(exp_mult · magnitude)` of the first two outputs, `[*S]`.

    With `exp_mult` 0 only the direction is computed. Derivatives are those of the plain
    form in every form.

    Args:
        layers: as from `init`; rows of the first kernel in order of the features.
        feature_set: the network's inputs.
        q: quantities that they are computed from.
        exp_mult: scale of the magnitude.
        execution: form and precision.
    """
    form = forms.choose(q.grad.shape, q.grad.dtype, execution.form)
    used = 2 if exp_mult else 1
    name = f"layer_{len(layers) - 1}"
    last = {"kernel": layers[name]["kernel"][:, :used]}
    last["bias"] = layers[name]["bias"][:used]
    program = _program(form, feature_set, q.epsilons, exp_mult, execution.precision)
    return program({**layers, name: last}, q.grad, q.param, q.state, q.step)


def apply(
    layers: Layers,
    feature_set: FeatureSet,
    q: Quantities,
    precision: Precision = "float32",
) -> jax.Array:
    """Returns the network's outputs for one tensor, `[*S, out]`.

    Args:
        layers: as from `init`; rows of the first kernel in order of the features.
        feature_set: the network's inputs.
        q: quantities that they are computed from.
        precision: of the products.
    """
    hidden = _first_layer(layers["layer_0"], feature_set, q, precision)
    for i in range(1, len(layers)):
        layer, active = layers[f"layer_{i}"], jnp.maximum(hidden, 0.0)
        hidden = product(active, layer["kernel"], precision)
        hidden = hidden + jnp.broadcast_to(layer["bias"], hidden.shape)
    return hidden


@functools.cache
def _program(
    form: Form,
    feature_set: FeatureSet,
    epsilons: Epsilons,
    exp_mult: float,
    precision: Precision,
) -> Callable[..., jax.Array]:
    """Builds (layers, gradient, parameter, state, step) -> displacement."""

    def plain(
        layers: Layers,
        grad: jax.Array,
        param: jax.Array,
        state: TensorState,
        step: jax.Array,
    ) -> jax.Array:
        q = Quantities(grad, param, state, step, epsilons)
        out = apply(layers, feature_set, q, precision)
        return first_layer.combine(
            [out[..., i] for i in range(out.shape[-1])], exp_mult
        )

    if form == "plain":
        return plain
    module = {"blocked": blocked, "kernel": kernels}[form]
    fast = jax.custom_jvp(module.program(feature_set, epsilons, exp_mult, precision))
    fast.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return fast


def _first_layer(
    layer: dict[str, jax.Array],
    feature_set: FeatureSet,
    q: Quantities,
    precision: Precision,
) -> jax.Array:
    parts = first_layer.split(layer, feature_set, q)
    bias, total = parts.bias, None
    for axis, terms in parts.places.items():
        values = first_layer.values_of(terms, q)
        if axis is not None:
            values = jnp.expand_dims(values, axis)
        kernel = first_layer.kernel_of(terms)
        used = precision if axis is None else "float32"
        term = _normalized_product(values, kernel, q.epsilons, used)
        # The bias is added where it costs least.
        if axis is not None and bias is not None:
            term, bias = term + jnp.broadcast_to(bias, term.shape), None
        total = term if total is None else _sum(total, term)
    assert total is not None
    return total if bias is None else total + jnp.broadcast_to(bias, total.shape)


def _sum(x: jax.Array, y: jax.Array) -> jax.Array:
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    return jnp.broadcast_to(x, shape) + jnp.broadcast_to(y, shape)


def _normalized_product(
    values: jax.Array, kernel: jax.Array, epsilons: Epsilons, precision: Precision
) -> jax.Array:
    """Normalized features `[F, *S]` times a kernel `[F, H]`: `[*S, H]`."""
    scaled = features.normalizers(values, epsilons)[:, None] * kernel
    return product(jnp.moveaxis(values, 0, -1), scaled, precision)
