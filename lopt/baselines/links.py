"""Links of optax chains that depend on the specs or the dtype of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopt import checks
from lopt.base import Specs, map_with_specs
from parametrization.rules import Rules
from parametrization.spec import ParamSpec


def scale_by(
    specs: Specs, factor: Callable[[ParamSpec], float]
) -> optax.GradientTransformation:
    """Multiplies each parameter's update by a function of its spec."""

    def update(updates: optax.Updates, params: optax.Params | None = None) -> Any:
        del params
        return map_with_specs(lambda u, spec: u * factor(spec), updates, specs)

    return optax.stateless(update)


def scale_by_specs(specs: Specs, rules: Rules) -> optax.GradientTransformation:
    """Multiplies each parameter's update by its step scale."""
    return scale_by(specs, rules.step_scale)


def unscale_gradients(specs: Specs, rules: Rules) -> optax.GradientTransformation:
    """Divides each gradient by how much the parametrization makes it shrink.

    The next links see gradients of the base model's size, so that an absolute epsilon
    (Adam's, those of learned features) means the same at every width.
    """

    def update(updates: optax.Updates, params: optax.Params | None = None) -> Any:
        del params
        return map_with_specs(
            lambda u, spec: u / rules.gradient_scale(spec), updates, specs
        )

    return optax.stateless(update)


def add_decayed_weights(weight_decay: float) -> list[optax.GradientTransformation]:
    """Returns decoupled weight decay, or no link if it is 0."""
    return [optax.add_decayed_weights(weight_decay)] if weight_decay else []


def in_float32(
    transformation: optax.GradientTransformation, complex_numbers: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation on gradients and parameters of float32 at least.

    Accumulators of bfloat16 parameters are float32, updates have the parameters' dtype.
    Complex parameters are refused unless the transformation knows `complex_numbers`.
    """
    inner = optax.with_extra_args_support(transformation)

    def widen(x: Any) -> jax.Array:
        checks.floating(x, complex_numbers)
        return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(jax.tree.map(widen, params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        like = updates if params is None else params
        wide = None if params is None else jax.tree.map(widen, params)
        steps, state = inner.update(
            jax.tree.map(widen, updates), state, wide, **extra_args
        )
        steps = jax.tree.map(lambda u, x: u.astype(jnp.result_type(x)), steps, like)
        return steps, state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore
