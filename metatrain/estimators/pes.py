"""Persistent evolution strategies, PES, and its generalization GPES.

In window t of an episode pair i adds a new noise to its sum,

    ε_i ~ N(0, σ²I),    ξ_i ← ξ_i + ε_i    (ξ_i = 0 when the episode begins),

and credits the whole sum with the difference of its members' losses:

    g = mean_i (L(θ + ε_i) − L(θ − ε_i)) · ξ_i / (2σ²).

A noise also acts on all later windows of its episode, through the state in which they
begin; the sum credits it for that, so the estimate is unbiased. GPES_K draws a new
noise only every K windows, and ξ_i sums the noises drawn.

References:
    Vicol et al., PES, arXiv:2112.13835, Algorithm 1.
    Li et al., GPES, arXiv:2304.12180.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from lopt.base import Theta
from metatrain.estimators.antithetic import AntitheticES, PairState
from metatrain.inner_training import InnerTraining


@configuration
class PES(AntitheticES):
    """Persistent ES: a new noise every K windows, credit for all of the episode."""

    refresh: int = 1
    """Windows K for which a noise is kept: 1 is PES, more is GPES."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refresh < 1:
            raise ValueError(
                f"refresh = {self.refresh} must be a positive whole number of windows"
            )

    def init(self, problem: InnerTraining, theta: Theta) -> PairState:
        """See `Estimator.init`; GPES keeps the noise beside the credit."""
        state = super().init(problem, theta)
        noise = None if self.refresh == 1 else jnp.zeros_like(state.credit)
        return state._replace(noise=noise)

    def perturb(
        self, fresh: jax.Array, pair: PairState, begins: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `AntitheticES.perturb`."""
        draws = begins | self.draws(pair, self.refresh)
        kept = pair.credit if pair.noise is None else pair.noise
        noise = jnp.where(draws, fresh, kept)
        credit = jnp.where(begins, 0.0, pair.credit)
        return noise, jnp.where(draws, credit + noise, credit)
