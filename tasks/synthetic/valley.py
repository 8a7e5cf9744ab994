"""A curved valley, along whose floor gradient descent is slow."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from configuration.fields import configuration
from tasks.base import Loss, Params, check_seed
from tasks.models.base import check_positive
from tasks.synthetic.base import (
    Landscape,
    random_rotation,
    rotated,
    rotated_back,
)


class Frame(NamedTuple):
    """Position of a valley in space."""

    rotation: jax.Array | None  # [D, D] its axes as columns; None: the identity
    scale: jax.Array  # [] float32, size of one of its units in x


@final
@configuration
class Valley(Landscape):
    """Rosenbrock's function in many dimensions.

    The sum of `curvature · (z_b − z_a²)² + (1 − z_a)²` over pairs (a, b) of
    coordinates; the lowest point is z = (1, …, 1), and x = scale · R z. Rosenbrock,
    Computer Journal 3 (1960). Chained, with curvature 100, there is a second minimum
    near z = (−1, 1, …, 1) in 4 to 30 dimensions (Shang and Qiu, Evolutionary
    Computation 14, 2006).
    """

    dimension: int = 16
    """Number of coordinates (`D`), even unless chained."""
    curvature: float = 100.0
    """Steepness of the walls relative to the floor."""
    chained: bool = True
    """Whether the pairs are (1, 2), (2, 3), (3, 4), … or (1, 2), (3, 4), …"""
    rotated: bool = False
    """Whether R is a random rotation instead of the identity."""
    scale: float = 1.0
    """Size of the valley; runs start at N(0, 1) in x regardless."""
    seed: int = 0
    """Seed of the rotation."""

    def __post_init__(self) -> None:
        check_positive(self, "dimension")
        if self.dimension < 2 or not (self.chained or self.dimension % 2 == 0):
            raise ValueError(
                f"dimension = {self.dimension} must be 2 or more, and even unless "
                "chained"
            )
        for name in ("curvature", "scale"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")
        check_seed(self.seed)

    def load_data(self) -> Frame:
        """Returns rotation and scale."""
        rng = np.random.RandomState(self.seed)
        rotation = random_rotation(rng, self.dimension) if self.rotated else None
        return Frame(rotation, jnp.float32(self.scale))

    def optimum(self, dataset: Frame) -> Params:
        """Returns x at z = (1, …, 1)."""
        z = jnp.ones(self.dimension)
        return {"x": dataset.scale * rotated(dataset.rotation, z)}

    def loss(self, params: Params, key: jax.Array, batch: Frame) -> Loss:
        """Returns the height `[]` at the position."""
        del key
        z = rotated_back(batch.rotation, params["x"] / batch.scale)
        step = 1 if self.chained else 2
        a, b = z[:-1:step], z[1::step]
        return jnp.sum(self.curvature * (b - a**2) ** 2 + (1.0 - a) ** 2), {}
