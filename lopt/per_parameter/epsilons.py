"""Floors inside a learned optimizer's features.

The original floors are absolute: gradients below about 3e-3 count as small. In μP
gradients fall as 1/width, so features that should not depend on the width fade with it.
"""

from __future__ import annotations

import dataclasses

from configuration.fields import configuration


@configuration
class Epsilons:
    """Floors of quotients and roots; part of the released optimizer."""

    normalizer: float = 1e-5
    """Added to the mean square by which each feature of a tensor is normalized."""
    second_moment: float = 1e-6
    """Added to the second moment before its reciprocal root."""
    row_col: float = 1e-8
    """Added to row and column moments before their reciprocal roots."""
    factored: float = 1e-9
    """Floor of the row and column factors of the factored preconditioner."""
    gradient_square: float = 1e-30
    """Added to the squared gradient that the factored moments average."""
    one_dimensional: float = 1e-6
    """Added to the moment of a vector before its momentum is divided by its root."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 1e-37 <= value <= 1e10:
                raise ValueError(
                    f"epsilons.{field.name} = {value} must lie in [1e-37, 1e10], where "
                    "float32 keeps it"
                )


PAPER = Epsilons()
"""The floors of google/learned_optimization, μLO and PyLO."""

WIDTH_SAFE = Epsilons(
    normalizer=1e-30,
    second_moment=1e-20,
    row_col=1e-20,
    factored=1e-20,
    gradient_square=1e-30,
    one_dimensional=1e-20,
)
"""Floors far below the gradients of any network that float32 can train."""
