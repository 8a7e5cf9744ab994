"""Nine features of the training loss's progress, independent of its scale.

Ten running means of the loss have half-lives from 10 steps to the length of the run.
Feature k places mean k between its own lowest value (−1) and the next, slower mean (0);
it is at most 1. A loss is first cut to twice the largest mean, so that a spike does not
wipe out the history; a loss that is not finite is left out.

Published VeLO was trained with buffers that took every run for one of 10 steps: all ten
half-lives are 10. `TEN_STEPS` as the length of the run gives these features.

References:
    Metz et al., VeLO, arXiv:2211.09760, Appendix B; `BufferLossAccumulators` of
    google/learned_optimization.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

MEANS = 10
FEATURES = MEANS - 1
TEN_STEPS = 10
"""Length of every run in published VeLO's buffers."""

_NO_MINIMUM = 999999999999.0
# Losses until which the features are 0.
_QUIET = 2


class LossBuffer(NamedTuple):
    """Running means of the losses, fastest first."""

    means: jax.Array  # [10], not yet bias-corrected
    minima: jax.Array  # [10], the lowest corrected means so far
    losses: jax.Array  # [] int32, how many were averaged


def init(dtype: jnp.dtype) -> LossBuffer:
    """Returns a buffer that has seen no loss."""
    return LossBuffer(
        means=jnp.zeros(MEANS, dtype),
        minima=jnp.full(MEANS, _NO_MINIMUM, dtype),
        losses=jnp.zeros([], jnp.int32),
    )


def update(
    buffer: LossBuffer, loss: jax.typing.ArrayLike, num_steps: int | jax.Array
) -> LossBuffer:
    """Adds one loss `[]`, unless it is not finite."""
    loss = jnp.asarray(loss, buffer.means.dtype)
    count = buffer.losses + 1
    weight = _complements(num_steps, 1, loss.dtype)
    correction = _complements(num_steps, count, loss.dtype)
    largest = jnp.max(buffer.means / correction)
    bound = 2.0 * jnp.abs(jnp.where(buffer.losses == 0, loss, largest))
    means = (1.0 - weight) * buffer.means + weight * jnp.minimum(loss, bound)
    minima = jnp.minimum(buffer.minima, means / correction)
    finite = jnp.isfinite(loss)
    new = LossBuffer(means, minima, count)
    return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, buffer)


def features(buffer: LossBuffer, num_steps: int | jax.Array) -> jax.Array:
    """Returns the nine features, in [−1, 1]."""
    count = jnp.maximum(buffer.losses, 1)
    means = buffer.means / _complements(num_steps, count, buffer.means.dtype)
    minima = buffer.minima[:-1]
    above = means[:-1] - minima
    # At its minimum, a mean may differ from it by rounding; with ten equal half-lives
    # so would the next mean, and the quotient would be one of roundings.
    rounding = 8.0 * jnp.finfo(means.dtype).eps * jnp.abs(minima)
    above = jnp.where(above <= rounding, jnp.zeros_like(above), above)
    span = jnp.maximum(means[1:] - minima, 1e-8)
    place = jnp.clip(above / span - 1.0, -1.0, 1.0)
    return jnp.where(buffer.losses <= _QUIET, jnp.zeros_like(place), place)


def _complements(
    num_steps: int | jax.Array, count: int | jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """Returns 1 − decay^count of each mean `[10]`, from half-lives to keep digits."""
    longest = jnp.log10(jnp.maximum(jnp.asarray(num_steps, dtype), 1.0))
    half_lives = 10.0 ** jnp.linspace(1.0, longest, MEANS, dtype=dtype)
    return -jnp.expm1(-jnp.asarray(count, dtype) / half_lives)
