"""Matrix-like parameters as stacks of matrices from inputs to outputs.

Rules for matrices (Newton–Schulz, CELO2) see an attention kernel `width -> heads
head_dim` as one matrix from `width` to all heads, and each position of a convolution as
a matrix of its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopt.base import Specs, map_with_specs
from lopt.clipping import root
from lopt.placement import Groups, axis_names, merged, zeros_like
from lopt.tensors import RULE, need, num_positions
from parametrization.axes import LOOKUP_NAMES, Axes
from parametrization.spec import ParamSpec


def is_matrix(spec: ParamSpec) -> bool:
    """Whether a parameter maps inputs to outputs: no vector, scalar or lookup table."""
    axes = spec.axes
    if not (axes.fan_in and axes.fan_out):
        return False
    return not any(name in LOOKUP_NAMES for name in axes.fan_in)


def matrix_spec(spec: ParamSpec) -> ParamSpec:
    """Returns the spec of the parameter as `[stacked..., positions..., in, out]`."""
    axes, groups = spec.axes, _groups(spec)

    def shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(math.prod(sizes[i] for i in group) for group in groups)

    grows_in = spec.kind in ("hidden", "output")
    grows_out = spec.kind in ("hidden", "input")
    return dataclasses.replace(
        spec,
        axes=Axes(
            fan_in=("width" if grows_in else "fixed",),
            fan_out=("width" if grows_out else "fixed",),
            stacked=axes.names[: len(groups) - 2],
        ),
        shape=shape(spec.shape),
        base_shape=shape(spec.base_shape),
        order=None,
    )


def _groups(spec: ParamSpec) -> Groups:
    """Returns the axes of the parameter that are merged into each of the matrices'."""
    axes, stacked = spec.axes, len(spec.axes.stacked)
    lead = stacked + min(num_positions(axes), max(len(axes.fan_in) - 1, 0))
    inner = stacked + len(axes.fan_in)
    sides = tuple(range(lead, inner)), tuple(range(inner, len(spec.shape)))
    return [*((i,) for i in range(lead)), *sides]


def on_matrices(
    transformation: optax.GradientTransformationExtraArgs, specs: Specs
) -> optax.GradientTransformationExtraArgs:
    """Applies a transformation of matrices to parameters of any shape.

    Args:
        transformation: of arrays of `matrix_spec`'s shapes.
        specs: specs of all parameters; masked ones are left alone.
    """

    def matrices(tree: Any) -> Any:
        def one(leaf: Any, spec: ParamSpec) -> Any:
            return spec.canonical(leaf).reshape(matrix_spec(spec).shape)

        return map_with_specs(one, tree, specs)

    def init(params: optax.Params) -> optax.OptState:
        def blank(leaf: Any, spec: ParamSpec) -> Any:
            names = merged(axis_names(leaf, spec.order), _groups(spec))
            return zeros_like(leaf, matrix_spec(spec).shape, leaf.dtype, names)

        return transformation.init(map_with_specs(blank, params, specs))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        values = matrices(need(params, RULE))
        steps, state = transformation.update(
            matrices(updates), state, values, **extra_args
        )

        def back(_: Any, spec: ParamSpec, step: jax.Array) -> jax.Array:
            return spec.as_given(step.reshape(spec.shape))

        return map_with_specs(back, updates, specs, steps), state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic polynomial of Jordan et al., Muon,
https://kellerjordan.github.io/posts/muon."""


def newton_schulz(
    matrices: jax.Array, num_steps: int = 5, eps: float = 1e-8
) -> jax.Array:
    """Orthogonalizes the last two axes of `[..., m, n]`; a zero matrix stays zero.

    Each step applies the polynomial to the singular values, which end up near 1
    (between .7 and 1.2).
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else jnp.swapaxes(matrices, -1, -2)
    norm = root(jnp.sum(x * x, axis=(-2, -1), keepdims=True))
    x = x / (norm + eps)
    for _ in range(num_steps):
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else jnp.swapaxes(x, -1, -2)
