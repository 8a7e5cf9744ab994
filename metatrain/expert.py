"""An expert optimizer that guides a learned one early in meta-training.

A learned optimizer with a random θ diverges or stands still, and its losses say little
about where to go. An expert, any baseline with hyperparameters of its own, therefore
sees the same gradients on the same trajectory, and helps in two ways:

* **Blended trajectories**: the applied step is w·(expert's step) + (1 − w)·(learned
  step), so episodes reach the places that a good optimizer reaches.
* **Imitation**: with e and u the expert's and the learned step, all parameters as one
  vector, each inner step contributes to the objective

      direction · (1 − cos(e, u)) + log_magnitude · |ln(‖u‖ / ‖e‖)|.

One ramp takes all three weights from their full size to 0 between two outer steps;
afterwards meta-training continues as if there had never been an expert.

Where w = 1 both members of a pair follow the expert, their losses are the same, and
only imitation moves θ.

References:
    ELO, arXiv:2607.06772. There the expert borrows the accumulators of the learned
    optimizer; the published code compares ‖u‖ and ‖e‖ without the logarithm, weights
    the loss with the rest of 1 that the imitation terms leave, and normalizes the
    differences of the terms between the members of a pair.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from configuration.ranges import check_range
from lopt.base import LearnedOptimizer, Specs, Theta
from lopt.baselines import Adam, Baseline, ScheduleFreeAdamW

LARGEST_RATIO = 10.0
"""Cap of |ln(‖u‖/‖e‖)|, a factor of 22,026; NaN counts as the cap."""


class GuidedState(NamedTuple):
    """State of a learned optimizer and of the expert beside it."""

    learned: Any
    expert: Any
    imitation: jax.Array  # [] contribution of the last step to the objective


@configuration
class Expert:
    """An expert optimizer, its weights, and the outer steps in which they fall to 0."""

    optimizer: Baseline = Adam(learning_rate=1e-3, weight_decay=1e-2)
    """Any baseline that moves the parameters it is given; its θ is its own learning
    rate, its schedule spans an episode."""
    full_until: int = 5_000
    """Outer steps with the full weights."""
    over_at: int = 50_000
    """Outer step at which the weights, falling linearly, reach 0."""
    blend: float = 1.0
    """Share of the expert in the applied steps; 0 leaves trajectories alone."""
    direction: float = 0.7
    """Weight of 1 − cosine of the steps."""
    log_magnitude: float = 0.3
    """Weight of the logarithm of the ratio of the steps' norms."""

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, ScheduleFreeAdamW):
            raise ValueError(
                "expert.optimizer = ScheduleFreeAdamW trains an average that a blended "
                "run would not follow: choose another baseline"
            )
        for name in ("full_until", "over_at"):
            check_range(f"expert.{name}", getattr(self, name), "[0, 1e9]")
        if self.over_at <= self.full_until:
            raise ValueError(
                f"expert.over_at = {self.over_at} must be greater than "
                f"expert.full_until = {self.full_until}"
            )
        check_range("expert.blend", self.blend, "[0, 1]")
        for name in ("direction", "log_magnitude"):
            check_range(f"expert.{name}", getattr(self, name), "[0, 1e6]")

    def ramp(self, outer_step: int | jax.Array) -> jax.Array:
        """Returns the factor `[]` float32 in [0, 1] on all weights at an outer step."""
        left = self.over_at - jnp.asarray(outer_step, jnp.int32)
        share = left.astype(jnp.float32) / (self.over_at - self.full_until)
        return jnp.clip(share, 0.0, 1.0)

    def imitation(self, learned: Any, expert: Any, ramp: jax.Array) -> jax.Array:
        """Returns one step's contribution to the objective `[]`, always finite.

        Args:
            learned: step of the learned optimizer, a tree.
            expert: step of the expert.
            ramp: `[]`, see `ramp`.
        """
        cosine, log_ratio = compare(learned, expert)
        terms = self.direction * (1 - cosine) + self.log_magnitude * jnp.abs(log_ratio)
        return ramp * terms


def compare(left: Any, right: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the cosine `[]` of two trees, and ln of the ratio of their norms `[]`.

    Any norms that float32 holds are fine. Two zero vectors count as equal; a single one
    is orthogonal to everything, and smaller by `LARGEST_RATIO`. With a NaN or an
    infinity the vectors count as opposite and as unequal as can be.
    """
    (x, log_x), (y, log_y) = _unit(left), _unit(right)
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    cosine = jnp.clip(sum(jnp.sum(a * b) for a, b in pairs), -1.0, 1.0)
    # Minus infinity is the logarithm of a norm of 0.
    nothing = jnp.isneginf(log_x) & jnp.isneginf(log_y)
    ratio = jnp.clip(log_x - log_y, -LARGEST_RATIO, LARGEST_RATIO)
    finite = (log_x < jnp.inf) & (log_y < jnp.inf)  # false for NaN
    cosine = jnp.where(nothing, 1.0, jnp.where(finite, cosine, -1.0))
    ratio = jnp.where(nothing, 0.0, jnp.where(finite, ratio, LARGEST_RATIO))
    return cosine, ratio


def _unit(tree: Any) -> tuple[Any, jax.Array]:
    """Returns a tree scaled to norm 1, unless it is zero, and the log of its norm."""
    tree = jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )
    leaves = jax.tree.leaves(tree)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in leaves]))
    # Squares of tiny or huge entries would underflow or overflow.
    scale = jnp.where(largest > 0, largest, 1.0)
    scaled = jax.tree.map(lambda x: x / scale, tree)
    square = sum(jnp.sum(x**2) for x in jax.tree.leaves(scaled))
    root = jnp.sqrt(jnp.where(largest > 0, square, 1.0))
    log_norm = jnp.where(jnp.isnan(largest), jnp.nan, jnp.log(root) + jnp.log(largest))
    return jax.tree.map(lambda x: x / root, scaled), log_norm


@dataclasses.dataclass(frozen=True)
class Guided:
    """A learned optimizer whose steps are blended with an expert's.

    A `LearnedOptimizer` of one window, which has one value of the ramp.
    """

    lopt: LearnedOptimizer
    expert: Expert
    ramp: jax.Array | float = 1.0
    """`[]`, see `Expert.ramp`."""

    def init(self, key: jax.Array) -> Theta:
        """Returns θ of the learned optimizer."""
        return self.lopt.init(key)

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """Runs both optimizers side by side (see `LearnedOptimizer.as_optax`)."""
        learned = self.lopt.as_optax(theta, specs, num_steps)
        optimizer = self.expert.optimizer
        # A baseline's θ does not depend on the key.
        own = optimizer.init(jax.random.key(0))
        expert = optimizer.as_optax(own, specs, num_steps)
        weight = self.ramp * jnp.float32(self.expert.blend)

        def init(params: optax.Params) -> GuidedState:
            return GuidedState(
                learned.init(params), expert.init(params), jnp.float32(0.0)
            )

        def update(
            updates: optax.Updates,
            state: GuidedState,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, GuidedState]:
            ours, own_state = learned.update(
                updates, state.learned, params, **extra_args
            )
            theirs, expert_state = expert.update(
                updates, state.expert, params, **extra_args
            )
            imitation = self.expert.imitation(ours, theirs, jnp.float32(self.ramp))
            steps = jax.tree.map(lambda u, e: _blend(weight, u, e), ours, theirs)
            imitation = imitation.astype(jnp.float32)
            return steps, GuidedState(own_state, expert_state, imitation)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def _blend(weight: jax.Array, learned: jax.Array, expert: jax.Array) -> jax.Array:
    """Returns the weighted mean of two steps; exactly one of them at weights 0, 1."""
    mean = (weight * expert + (1 - weight) * learned).astype(learned.dtype)
    whole = jnp.where(weight >= 1, expert.astype(learned.dtype), mean)
    return jnp.where(weight > 0, whole, learned)
