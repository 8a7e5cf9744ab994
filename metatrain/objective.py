"""The meta-loss of an unroll: normalized, capped losses, and which of them count.

Divergence is data: a loss that is NaN, infinite or far above chance counts as the cap,
so one diverged member cannot dominate a meta-gradient and none is hidden.

An objective is a figure of a whole episode, but an estimator sees one window at a time.
So every step *contributes*, and the mean of the contributions over the steps of an
episode is its objective. With x_i the normalized loss of step i, L the length and m_i
the minimum of the first i losses (m_0 = 0):

* `mean`: x_i.
* `final`: L · x_i at the last step, 0 before.
* `last_k`: (L / k) · x_i at the last k steps; all steps of a shorter episode.
* `mean_log`: ln(x_i + floor). A loss that halves counts alike at 1 and at .01, so the
  tail of a run counts as much as its beginning.
* `minimum`: L · (m_{i+1} − m_i); the sum telescopes to the smallest loss of all.

The sum does not depend on where windows are cut, so PES is unbiased for each of them.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from configuration.fields import configuration, later
from configuration.ranges import check_range

Split = Literal["train", "inner_valid"]
Figure = Literal["mean", "final", "last_k", "minimum", "mean_log"]
CapForm = Literal["hard", "smooth"]


@configuration
class Objective:
    """The meta-loss: a figure of an episode's normalized losses."""

    split: Split = "train"
    """train: loss of the training batch before the update; inner_valid: of a fresh
    batch of that split after the update."""
    cap: float = 1.5
    """Largest normalized loss (chance is 1); NaN counts as the cap."""
    figure: Figure = "mean"
    """mean: over all steps; final: the last step's; last_k: the mean of the last k
    steps; minimum: the smallest of the episode; mean_log: over all steps, of
    ln(loss + floor)."""
    k: int = 20
    """Steps at the end of an episode that count for `last_k`."""
    floor: float = later(1e-3)
    """Normalized loss below which a smaller one gains little, for `mean_log`."""
    cap_form: CapForm = "hard"
    """hard: losses are clipped at the cap; smooth: above chance they approach it, so
    the worse of two diverging members still counts as worse."""

    def __post_init__(self) -> None:
        check_range("objective.cap", self.cap, "(0, 1e6]")
        check_range("objective.k", self.k, "[1, 1e9]")
        check_range("objective.floor", self.floor, "[1e-30, 1e6]")
        if self.cap_form == "smooth" and self.cap <= 1:
            raise ValueError(
                f"objective.cap = {self.cap} must be above 1 with cap_form = 'smooth', "
                "which leaves losses up to chance as they are"
            )

    @property
    def remembers_minimum(self) -> bool:
        """Whether an episode must carry the smallest loss so far."""
        return self.figure == "minimum"

    def normalize(self, losses: jax.Array, loss_at_chance: float) -> jax.Array:
        """Returns losses in units of the loss at chance, in [0, cap] (any shape).

        NaN and both infinities count as the cap; a finite loss below 0 counts as 0.
        """
        normalized = losses / loss_at_chance
        if self.cap_form == "smooth":
            capped = self._soften(jnp.maximum(normalized, 0.0))
        else:
            capped = jnp.clip(normalized, 0.0, self.cap)
        # Neither NaN nor −∞ is above −∞.
        return jnp.where(normalized > -jnp.inf, capped, self.cap)

    def diverged(self, normalized: jax.Array) -> jax.Array:
        """Returns which normalized losses reach the cap before it is applied (bool)."""
        if self.cap_form == "smooth":
            return normalized >= self._soften(jnp.float32(self.cap))
        return normalized >= self.cap

    def contributions(
        self,
        losses: jax.Array,
        step: jax.Array,
        length: jax.Array,
        minimum: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns each step's contribution to the objective of its episode.

        Args:
            losses: `[T]`, normalized.
            step: `[]` int32, steps of the episode before the window.
            length: `[]` int32, of the episode.
            minimum: `[]`, smallest loss before the window, where it is remembered;
                ignored in the first window.

        Returns:
            Contributions `[T]`, and the smallest loss so far, where it is remembered.
        """
        if self.figure == "mean":
            return losses, minimum
        if self.figure == "mean_log":
            return jnp.log(losses + self.floor), minimum
        scale = length.astype(losses.dtype)
        if self.figure == "minimum":
            assert minimum is not None
            before = jnp.where(step == 0, jnp.inf, minimum)
            running = jnp.minimum(jax.lax.cummin(losses), before)
            # m_0 = 0, so the first loss counts in full.
            before = jnp.where(step == 0, 0.0, minimum)
            previous = jnp.concatenate([before[None], running[:-1]])
            return scale * (running - previous), running[-1]
        last = jnp.minimum(1 if self.figure == "final" else self.k, length)
        counts = step + jnp.arange(len(losses)) >= length - last
        weight = scale / last.astype(losses.dtype)
        return jnp.where(counts, weight * losses, 0.0), minimum

    def _soften(self, x: jax.Array) -> jax.Array:
        """Returns x up to 1, then cap − (cap − 1) / (1 + ln(1 + u)), slope 1 at 1.

        Here u = (x − 1) / (cap − 1). It approaches the cap so slowly that in float32
        losses of 1e20 and 2e20 still differ.
        """
        room = self.cap - 1.0
        excess = jnp.maximum(x - 1.0, 0.0) / room
        return jnp.where(x <= 1.0, x, self.cap - room / (1.0 + jnp.log1p(excess)))
