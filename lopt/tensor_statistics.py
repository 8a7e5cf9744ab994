"""What is said about a tensor as a whole: means, spreads, magnitudes.

Arrays are `[n, *S]`, statistics `[n]` (see `tensor_stack`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mean(x: jax.Array) -> jax.Array:
    """Mean of each tensor."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def variance(x: jax.Array) -> jax.Array:
    """Mean squared distance from the mean, of each tensor."""
    center = jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)
    return mean(jnp.square(x - center))


def norm(x: jax.Array) -> jax.Array:
    """Euclidean norm of each tensor."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))


def log_magnitude(x: jax.Array) -> jax.Array:
    """ln(10⁻⁸ + |x|), clipped to [−5, 5]."""
    return jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5.0, 5.0)


def stack_features(features: dict[str, jax.Array]) -> jax.Array:
    """Features `[n]` or `[n, k]` of one leaf, joined by sorted name: `[n, F]`."""
    columns = [features[name] for name in sorted(features)]
    return jnp.concatenate([x[:, None] if x.ndim == 1 else x for x in columns], axis=-1)
