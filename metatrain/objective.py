"""What an unroll is judged by: the losses of a window, normalized and capped.

Divergence is data: a loss that is NaN, infinite or far above chance counts as the cap,
no more, so one diverged member cannot dominate a meta-gradient and none is ever hidden.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Objective:
    """The meta-loss: the mean over inner steps of a normalized loss."""

    split: Literal["train", "inner_valid"] = "train"
    """train: loss of the training batch before the update; inner_valid: of a fresh
    batch of that split after the update."""
    cap: float = 1.5
    """Largest normalized loss; 1 is chance. NaN counts as the cap."""

    def __post_init__(self) -> None:
        if not 0 < self.cap <= 1e6:
            raise ValueError(f"objective.cap = {self.cap} must lie in (0, 1e6]")
        if self.split not in ("train", "inner_valid"):
            raise ValueError(
                f"objective.split = {self.split!r} must be 'train' or 'inner_valid'"
            )

    def normalize(self, losses: jax.Array, loss_at_chance: float) -> jax.Array:
        """Losses in units of the loss at chance, in [0, cap] (any shape)."""
        normalized = losses / loss_at_chance
        capped = jnp.clip(normalized, 0.0, self.cap)
        return jnp.where(jnp.isnan(normalized), self.cap, capped)

    def diverged(self, normalized: jax.Array) -> jax.Array:
        """Which normalized losses stand at the cap (bool, any shape)."""
        return normalized >= self.cap
