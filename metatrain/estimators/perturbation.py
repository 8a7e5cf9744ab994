"""Factors of σ by part of θ."""

from __future__ import annotations

import re

import jax
import numpy as np

from lopt.base import Theta

Factors = tuple[tuple[str, float], ...]


def check_factors(factors: Factors, sigma: float) -> None:
    """Checks the numbers alone, whatever θ is.

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
    """Returns the factor of every leaf of θ; the last path that leads to it counts.

    Args:
        theta: arrays, or their shapes.
        factors: paths with their factors; a path ends at a leaf or above it, and its
            names are separated by dots or slashes.

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
    """Returns the factor of every entry of the raveled θ: `[D]`."""
    sizes = [leaf.size for leaf in jax.tree.leaves(theta)]
    return np.repeat(leaf_factors(theta, factors), sizes)
