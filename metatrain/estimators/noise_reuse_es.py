"""Noise-reuse evolution strategies (ES-Single): one noise for a whole episode.

Pair i draws its noise when an episode begins and keeps it to the end:

    ε_i ~ N(0, σ²I) once an episode,
    g = mean_i (L(θ + ε_i) − L(θ − ε_i)) · ε_i / (2σ²).

The estimate is unbiased, with the smallest variance among PES and all GPES_K. With
windows as long as episodes it is full ES (`NoiseReuseES.full`).

References:
    Li et al., noise-reuse ES, arXiv:2304.12180; Vicol, ES-Single, arXiv:2304.11153.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from metatrain.estimators.antithetic import AntitheticES, PairState


@configuration
class NoiseReuseES(AntitheticES):
    """Noise-reuse ES: one noise for each episode, credited in all of its windows."""

    def perturb(
        self, fresh: jax.Array, pair: PairState, begins: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `AntitheticES.perturb`."""
        noise = jnp.where(begins, fresh, pair.credit)
        return noise, noise
