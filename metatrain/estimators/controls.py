"""Departures from plain antithetic sampling, for comparisons and for other recipes.

Signs (VeLO) and clipping of loss differences are biased: they give up the size of a
difference for robustness. Separate batches show what common random numbers are worth.
Orthogonal noises leave every estimator unbiased, since each alone is exactly normal,
but none repeats a direction that another has seen (Choromanski et al.,
arXiv:1804.02395).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from metatrain.estimators.base import particle_key
from metatrain.keys import stream


@configuration
class Controls:
    """Options of antithetic sampling; by default it is plain."""

    sign_difference: float | None = None
    """Replaces the difference of a pair's losses by its sign times this (VeLO: 1)."""
    clip_difference: float | None = None
    """Largest absolute difference of a pair's losses."""
    common_random_numbers: bool = True
    """Whether both members of a pair see the same batches."""
    orthogonal: bool = False
    """Whether the noises of the pairs that share a task are orthogonal."""

    def __post_init__(self) -> None:
        for name in ("sign_difference", "clip_difference"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise ValueError(
                    f"controls.{name} = {value} must be positive and finite"
                )
        if self.sign_difference is not None and self.clip_difference is not None:
            raise ValueError(
                f"controls.clip_difference = {self.clip_difference} has no effect on "
                "signs: leave it or sign_difference out"
            )

    def check_streamed(self) -> None:
        """Checks that both members may be given the batches of one window.

        Raises:
            ValueError: if they see batches of their own.
        """
        if not self.common_random_numbers:
            raise ValueError(
                "controls.common_random_numbers = False: streamed data holds the same "
                "batches for both members; keep the data on the device"
            )

    def normal(
        self, key: jax.Array, index: jax.Array, pairs: int, like: jax.Array
    ) -> jax.Array:
        """Draws the standard normal vector `[D]` of one pair.

        Args:
            key: of the outer step.
            index: `[]` int32, the pair.
            pairs: pairs that share a task.
            like: a vector of the same shape and dtype.
        """
        if self.orthogonal:
            task_key = stream(particle_key(key, index // pairs), "noise")
            return orthogonal_normal(task_key, pairs, index % pairs, like)
        pair_key = stream(particle_key(key, index), "noise")
        return jax.random.normal(pair_key, like.shape, like.dtype)

    def difference(self, difference: jax.Array) -> jax.Array:
        """Returns a pair's difference of losses `[]` as it enters the estimate."""
        if self.sign_difference is not None:
            return self.sign_difference * jnp.sign(difference)
        if self.clip_difference is not None:
            bound = self.clip_difference
            return jnp.clip(difference, -bound, bound)
        return difference


def orthogonal_normal(
    key: jax.Array, num: int, index: jax.Array, like: jax.Array
) -> jax.Array:
    """Draws one of `num` standard normal vectors `[D]` orthogonal to each other.

    The directions come from a QR decomposition, uniform on the sphere once its signs
    are made unique; the lengths, those of normal vectors, are drawn separately.

    Args:
        key: the same for all of them.
        num: at most D.
        index: `[]` int32, which of them.
        like: a vector of the same shape and dtype.
    """
    direction_key, length_key = jax.random.split(key)
    shape = (like.size, num)
    q, r = jnp.linalg.qr(jax.random.normal(direction_key, shape, like.dtype))
    direction = q[:, index] * jnp.sign(r[index, index])
    length_key = jax.random.fold_in(length_key, index)
    return direction * jnp.linalg.norm(jax.random.normal(length_key, like.shape))
