"""Factors of σ by part of θ."""

from __future__ import annotations

import jax
import numpy as np

from lopt.base import Theta
from metatrain.frozen import leaves_under

Factors = tuple[tuple[str, float], ...]
"""Parts of θ with their factors; of several that contain a leaf, the last counts."""


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
    """Returns the factor of every leaf of θ, given as arrays or their shapes.

    Raises:
        ValueError: if θ has no such part.
    """
    values = [1.0] * len(jax.tree.leaves(theta))
    for path, factor in factors:
        under = leaves_under(theta, path, "sigma_factors")
        values = [factor if u else v for u, v in zip(under, values, strict=True)]
    return values


def raveled_factors(theta: Theta, factors: Factors) -> np.ndarray:
    """Returns the factor of every entry of the raveled θ: `[D]`."""
    sizes = [leaf.size for leaf in jax.tree.leaves(theta)]
    return np.repeat(leaf_factors(theta, factors), sizes)
