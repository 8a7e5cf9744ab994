"""Base of the synthetic tasks: a landscape and a position in it.

The position x, `{"x": [D]}`, is the only parameter. No axis of it scales, so every
parametrization is the same, and there is no width and no depth. A run starts at a
random position, each coordinate drawn from N(0, 1); the landscape is fixed by the
task's fields and is the dataset.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parametrization.axes import Axes
from parametrization.spec import ParamSpec
from tasks.base import BaseTask, Batch, Dataset, Draws, Params, Split


def random_rotation(rng: np.random.RandomState, dimension: int) -> jax.Array:
    """Draws a uniformly distributed orthogonal matrix `[D, D]`.

    Mezzadri, arXiv:math-ph/0609050.
    """
    q, r = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    return jnp.asarray(q * np.sign(np.diag(r)), jnp.float32)


def rotated(rotation: jax.Array | None, z: jax.Array) -> jax.Array:
    """Returns the vector `[D]` with coordinates z along the columns of a rotation."""
    # In full precision on every device: runs are compared with closed forms.
    return z if rotation is None else jnp.matmul(rotation, z, precision="highest")


def rotated_back(rotation: jax.Array | None, x: jax.Array) -> jax.Array:
    """Returns the coordinates `[D]` of x along the columns of a rotation."""
    return x if rotation is None else jnp.matmul(x, rotation, precision="highest")


class Landscape(BaseTask):
    """A loss of a position; subclasses are final frozen dataclasses."""

    dimension: int
    """Number of coordinates (`D`)."""

    unit = "units of the height"

    @abc.abstractmethod
    def optimum(self, dataset: Dataset) -> Params:
        """Returns the position of the lowest expected loss."""

    @property
    def lowest_loss(self) -> float:
        """Expected loss at the optimum."""
        return 0.0

    @property
    def resolution(self) -> str:
        """Number of coordinates."""
        return f"{self.dimension} coordinates"

    def init(self, key: jax.Array) -> Params:
        """Returns a position whose coordinates are drawn from N(0, 1)."""
        return {"x": jax.random.normal(key, (self.dimension,))}

    def specs(self) -> Any:
        """Returns the spec of the position: a vector that does not scale."""
        shape = (self.dimension,)
        return {"x": ParamSpec(Axes.parse("-> fixed"), shape, shape)}

    def draw(self, dataset: Dataset, key: jax.Array, split: Split, num: int) -> Draws:
        """Returns zeros `[num]`: nothing is random."""
        del dataset, key, split
        return jnp.zeros([num])

    def batch(self, dataset: Dataset, draw: Draws, split: Split) -> Batch:
        """Returns the landscape itself."""
        del draw, split
        return dataset

    def whole(self, dataset: Dataset, split: Split) -> Batch:
        """Returns the landscape, whose loss is the expected loss if it is noisy."""
        del split
        return dataset
