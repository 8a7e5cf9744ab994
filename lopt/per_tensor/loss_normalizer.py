"""A loss in standard deviations from its running mean.

A loss that is not finite is not averaged; its feature is the largest possible.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopt.per_parameter.accumulators import total_weight

LIMIT = 5.0
"""Bound of the feature, which lies in [−5, 5]."""


class LossAverages(NamedTuple):
    """Averages, not yet bias-corrected, `[]` each."""

    mean: jax.Array
    variance: jax.Array
    losses: jax.Array  # int32, how many were averaged


def init(dtype: jnp.dtype) -> LossAverages:
    """Returns averages of no loss."""
    return LossAverages(
        jnp.zeros([], dtype), jnp.zeros([], dtype), jnp.zeros([], jnp.int32)
    )


def update(
    averages: LossAverages, loss: jax.typing.ArrayLike, decay: float
) -> LossAverages:
    """Averages one more loss `[]`, unless it is not finite."""
    loss = jnp.asarray(loss, averages.mean.dtype)
    mean = decay * averages.mean + (1.0 - decay) * loss
    spread = decay * averages.variance + (1.0 - decay) * jnp.square(mean - loss)
    new = LossAverages(mean, spread, averages.losses + 1)
    finite = jnp.isfinite(loss)
    return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, averages)


def mean(averages: LossAverages, decay: float) -> jax.Array:
    """Returns the bias-corrected mean; 0 before the first loss."""
    return averages.mean * _correction(averages, decay)


def feature(
    averages: LossAverages, loss: jax.typing.ArrayLike, decay: float
) -> jax.Array:
    """Returns the distance of a loss `[]` from the mean in standard deviations."""
    loss = jnp.asarray(loss, averages.mean.dtype)
    variance = averages.variance * _correction(averages, decay)
    distance = (loss - mean(averages, decay)) * jax.lax.rsqrt(variance + 1e-8)
    return jnp.where(jnp.isfinite(loss), jnp.clip(distance, -LIMIT, LIMIT), LIMIT)


def _correction(averages: LossAverages, decay: float) -> jax.Array:
    count = averages.losses.astype(averages.mean.dtype)
    return 1.0 / (1e-8 + total_weight(decay, count))
