"""Truncated evolution strategies: each window is credited with its own noise alone.

    ε_i ~ N(0, σ²I) every window,
    g = mean_i (L(θ + ε_i) − L(θ − ε_i)) · ε_i / (2σ²).

The estimate is biased: a noise also acts on the windows that follow its own, and for
those it gets no credit. It serves as a control.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from metatrain.estimators.antithetic import AntitheticES, PairState


@configuration
class TruncatedES(AntitheticES):
    """Truncated ES, the biased control: noise is credited in its window alone."""

    def perturb(
        self, fresh: jax.Array, pair: PairState, begins: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `AntitheticES.perturb`."""
        noise = jnp.where(self.draws(pair), fresh, pair.credit)
        return noise, noise
