"""Noise-reuse evolution strategies (ES-Single): one noise for a whole episode.

Pair i draws its noise when an episode begins and keeps it to the end:

    ε_i ~ N(0, σ²I) once an episode,
    g = mean_i (L(θ + ε_i) − L(θ − ε_i)) · ε_i / (2σ²).

The estimate is unbiased, with the smallest variance among PES and all GPES_K. With
windows as long as episodes it is full ES.

References:
    Li et al., noise-reuse ES, arXiv:2304.12180; Vicol, ES-Single, arXiv:2304.11153.
"""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from metatrain.estimators.antithetic import AntitheticES, PairState
from metatrain.truncation import EpisodeLengths


@configuration
class NoiseReuseES(AntitheticES):
    """Noise-reuse ES: one noise for each episode, credited in all of its windows."""

    @classmethod
    def full(cls, length: int, **fields: Any) -> Self:
        """Returns full ES: each window is an episode of `length` inner steps."""
        lengths = EpisodeLengths(length, length, staggered=False)
        return cls(**fields, truncation=length, lengths=lengths)

    def perturb(
        self, fresh: jax.Array, pair: PairState, begins: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `AntitheticES.perturb`."""
        noise = jnp.where(begins, fresh, pair.credit)
        return noise, noise
