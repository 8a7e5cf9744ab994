"""How far each part of θ is perturbed, and in which directions.

Noise is standard normal, multiplied by σ and by a factor for each leaf of θ. The
directions of several pairs may be made orthogonal: then each of them alone is still
exactly normal, so every estimator stays as unbiased as it was, but none repeats what
another has seen (Choromanski et al., arXiv:1804.02395).
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from lopt.base import Theta

Factors = tuple[tuple[str, float], ...]


def check_factors(factors: Factors, sigma: float) -> None:
    """Refuses factors that make no sense, whatever θ is.

    Raises:
        ValueError: naming the path and its factor.
    """
    for path, factor in factors:
        if not 0.0 < factor < float("inf") or not 1e-18 <= sigma * factor <= 1e6:
            raise ValueError(
                f"sigma_factors: {factor} of {path!r} must be positive, and its "
                f"product with sigma = {sigma} lie in [1e-18, 1e6]"
            )


def leaf_factors(theta: Theta, factors: Factors) -> list[float]:
    """The factor of every leaf of θ; of several paths that lead to it, the last counts.

    Args:
        theta: arrays, or their shapes.
        factors: paths with their factors; a path ends at a leaf or above it, and its
            names are parted by dots or slashes.

    Raises:
        ValueError: if nothing lies under a path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(theta)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
    ]
    values = [1.0] * len(names)
    for path, factor in factors:
        prefix = "/".join(re.split(r"[./]", path))
        under = [n == prefix or n.startswith(f"{prefix}/") for n in names]
        if not any(under):
            raise ValueError(
                f"sigma_factors: theta has nothing at {path!r}; it has "
                f"{', '.join(names)}"
            )
        values = [factor if u else v for u, v in zip(under, values, strict=True)]
    return values


def raveled_factors(theta: Theta, factors: Factors) -> np.ndarray:
    """The factor of every meta-parameter, in the order of the raveled θ: `[D]`."""
    sizes = [leaf.size for leaf in jax.tree.leaves(theta)]
    return np.repeat(leaf_factors(theta, factors), sizes)


def orthogonal_normal(
    key: jax.Array, num: int, index: jax.Array, like: jax.Array
) -> jax.Array:
    """One of `num` standard normal vectors `[D]` that are orthogonal to each other.

    The directions are those of a QR decomposition, uniform on the sphere once its
    signs are made unique; lengths are drawn apart, those of normal vectors.

    Args:
        key: the same for all of them.
        num: at most D.
        index: `[]`, which one.
        like: a vector of the same shape and dtype.
    """
    direction_key, length_key = jax.random.split(key)
    shape = (like.size, num)
    q, r = jnp.linalg.qr(jax.random.normal(direction_key, shape, like.dtype))
    direction = q[:, index] * jnp.sign(r[index, index])
    length_key = jax.random.fold_in(length_key, index)
    return direction * jnp.linalg.norm(jax.random.normal(length_key, like.shape))
