"""Quadratics, with and without noise, on which optimizers have closed forms."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from configuration.fields import configuration
from tasks.base import Loss, Params, Split, batch_keys, check_seed
from tasks.models.base import check_positive
from tasks.synthetic.base import Landscape, random_rotation, rotated_back

Spectrum = Literal["flat", "linear", "log_uniform", "power"]
GradientCovariance = Literal["hessian", "squared_hessian"]


class Bowl(NamedTuple):
    """A quadratic form around a centre, from which single examples may be offset."""

    eigenvalues: jax.Array  # [D] descending, the largest 1
    rotation: jax.Array | None  # [D, D] eigenvectors as columns; None: the axes
    centre: jax.Array  # [D]
    offsets: jax.Array  # [B, D] of the examples, along the eigenvectors

    def height(self, x: jax.Array) -> jax.Array:
        """Returns ½ Σ λᵢ (yᵢ − offset)² at a position `[D]`, averaged over examples."""
        y = rotated_back(self.rotation, x - self.centre)
        squares = (jnp.broadcast_to(y, self.offsets.shape) - self.offsets) ** 2
        return 0.5 * jnp.sum(self.eigenvalues * jnp.mean(squares, axis=0))


class _BowlTask(Landscape):
    """A landscape whose dataset and batches are bowls."""

    def optimum(self, dataset: Bowl) -> Params:
        """Returns the centre, which is the mean of the centres of examples."""
        return {"x": dataset.centre}

    def loss(self, params: Params, key: jax.Array, batch: Bowl) -> Loss:
        """Returns the mean height `[]` of the batch's examples at the position."""
        del key
        return batch.height(params["x"]), {}


@final
@configuration
class Quadratic(_BowlTask):
    """½ (x − c)ᵀ H (x − c) with a chosen spectrum, without noise."""

    dimension: int = 32
    """Number of coordinates (`D`)."""
    spectrum: Spectrum = "log_uniform"
    """Eigenvalues from 1 to 1/condition: evenly spaced (linear), their logarithms
    evenly spaced (log_uniform), a power of the rank (power); or all 1 (flat)."""
    condition: float = 100.0
    """Largest over smallest eigenvalue; not used by a flat spectrum."""
    rotated: bool = False
    """Whether the eigenvectors are a random rotation of the axes."""
    seed: int = 0
    """Seed of the rotation and of the centre c, which is drawn from N(0, 1)."""

    def __post_init__(self) -> None:
        check_positive(self, "dimension")
        if not 1.0 <= self.condition < math.inf:
            raise ValueError(f"condition = {self.condition} must be 1 or more")
        check_seed(self.seed)

    def eigenvalues(self) -> np.ndarray:
        """Returns the eigenvalues of H, float64 `[D]`, descending from 1."""
        rank = np.arange(1.0, self.dimension + 1.0)
        along = (rank - 1.0) / max(self.dimension - 1, 1)  # 0 … 1
        lowest = 1.0 / self.condition
        match self.spectrum:
            case "flat":
                return np.ones(self.dimension)
            case "linear":
                return 1.0 - along * (1.0 - lowest)
            case "log_uniform":
                return lowest**along
            case "power":
                # The exponent at which the last rank has the lowest eigenvalue.
                return lowest ** (np.log(rank) / (math.log(self.dimension) or 1.0))

    def load_data(self) -> Bowl:
        """Returns spectrum, rotation and centre."""
        rng = np.random.RandomState(self.seed)
        centre = rng.normal(size=self.dimension)
        rotation = random_rotation(rng, self.dimension) if self.rotated else None
        return Bowl(
            eigenvalues=jnp.asarray(self.eigenvalues(), jnp.float32),
            rotation=rotation,
            centre=jnp.asarray(centre, jnp.float32),
            offsets=jnp.zeros((1, self.dimension)),
        )


@final
@configuration
class NoisyQuadratic(_BowlTask):
    """Noisy quadratic model, in which every example has its own centre.

    Schaul et al., arXiv:1206.1106; Wu et al., arXiv:1803.02021; Zhang et al.,
    arXiv:1907.04164. The gradient of an example is H (x − c) plus noise whose
    covariance does not depend on x; the expected loss is the quadratic's plus
    `lowest_loss`.
    """

    quadratic: Quadratic = Quadratic()
    """Mean landscape."""
    noise: float = 0.1
    """Standard deviation of one example's gradient where the eigenvalue is 1."""
    gradient_covariance: GradientCovariance = "hessian"
    """hessian: noise² H, as for a well-specified model at its optimum; squared_hessian:
    noise² H², as for centres with a spread of `noise` in every direction."""
    batch_size: int = 1
    """Examples per batch (`B`)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < math.inf:
            raise ValueError(f"noise = {self.noise} must not be negative")
        check_positive(self, "batch_size")

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return self.quadratic.dimension

    @property
    def lowest_loss(self) -> float:
        """Expected loss at the optimum: ½ tr(H Σ), with Σ the covariance of centres."""
        eigenvalues = self.quadratic.eigenvalues()
        return 0.5 * float(eigenvalues @ self.deviations() ** 2)

    def deviations(self) -> np.ndarray:
        """Returns the deviation of centres along each eigenvector, float64 `[D]`."""
        eigenvalues = self.quadratic.eigenvalues()
        # Covariance of the gradients: H Σ H.
        power = -0.5 if self.gradient_covariance == "hessian" else 0.0
        return self.noise * eigenvalues**power

    def load_data(self) -> Bowl:
        """Returns the landscape with two centres, one deviation to either side.

        Their mean loss is the expected loss (see `Landscape.whole`).
        """
        deviations = jnp.asarray(self.deviations(), jnp.float32)
        return self.quadratic.load_data()._replace(
            offsets=jnp.stack([deviations, -deviations])
        )

    def draw(self, dataset: Bowl, key: jax.Array, split: Split, num: int) -> jax.Array:
        """Draws the keys of `num` batches `[num]`."""
        del dataset
        return batch_keys(key, split, num)

    def batch(self, dataset: Bowl, draw: jax.Array, split: Split) -> Bowl:
        """Returns the landscape with the centres of `B` examples."""
        del split
        shape = (self.batch_size, self.dimension)
        deviations = jnp.broadcast_to(dataset.offsets[0], shape)
        return dataset._replace(offsets=deviations * jax.random.normal(draw, shape))
