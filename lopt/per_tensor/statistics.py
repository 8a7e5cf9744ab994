"""Statistics of one tensor `[*S]`, features of networks that see whole tensors."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lopt.clipping import root
from parametrization.spec import ParamSpec


def rank(spec: ParamSpec) -> float:
    """Returns the number of axes of one tensor, those stacked over layers left out."""
    return len(spec.shape) - len(spec.axes.stacked)


def variance(x: jax.Array) -> jax.Array:
    """Returns the mean squared distance from the mean, `[]`."""
    return jnp.mean(jnp.square(x - jnp.mean(x)))


def norm(x: jax.Array) -> jax.Array:
    """Returns the Euclidean norm, `[]`."""
    return root(jnp.sum(jnp.square(x)))


def log_magnitude(x: jax.Array) -> jax.Array:
    """Returns ln(10⁻⁸ + |x|), clipped to [−5, 5]."""
    return jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5.0, 5.0)


def join(features: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
    """Concatenates features `[]` or `[k]` in the order of their names, `[F]`."""
    parts = [jnp.atleast_1d(features[name]) for name in sorted(features)]
    return jnp.concatenate([part.astype(dtype) for part in parts])
