"""Schedule-free AdamW: an average of iterates in place of a schedule.

Three sequences run side by side: z takes plain steps, x is the weighted average of all
z, and gradients are taken at y = (1 − b1)·z + b1·x. A training loop's `params` are y,
and training losses are taken there; x is meant to be evaluated, and `evaluation_params`
computes it from y and the optimizer's state.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax import contrib

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs, is_masked
from lopt.baselines import base
from lopt.baselines.links import (
    add_decayed_weights,
    in_float32,
    scale_by_specs,
    unscale_gradients,
)


@configuration
class ScheduleFreeAdamW(base.RateTuned):
    """Schedule-free AdamW (Defazio et al., arXiv:2405.15682).

    z moves by Adam's steps without momentum, Θ(1) per element, and x and y are averages
    of z: the Adam-like column holds. Evaluate at `evaluation_params(state, params)`.
    Of schedules only a warm-up helps: the average stands in for a decay.
    """

    learning_rate: float = 2.5e-3
    """Initial learning rate, the whole of θ."""
    b1: float = 0.9
    """Share of the average in the point at which gradients are taken; above 0."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment; in μP it shrinks as gradients do."""
    weight_decay: float = 0.0
    """Decoupled weight decay at y: the learning rate multiplies it, μP's step scale
    not."""
    weight_lr_power: float = 2.0
    """Exponent of the largest learning rate so far in an iterate's weight."""

    def __post_init__(self) -> None:
        base.check_normalized(self.rules, "schedule-free Adam's")
        checks.positive(self, "learning_rate", "eps")
        checks.decay(self, "b1", "b2")
        if self.b1 == 0:
            raise ValueError(
                "b1 = 0.0 must lie in (0, 1): the average is found by 1/b1"
            )
        checks.not_negative(self, "weight_decay", "weight_lr_power")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer under a learning-rate schedule."""
        steps = optax.chain(
            unscale_gradients(specs, self.rules),
            optax.scale_by_rms(
                self.b2, self.eps, eps_in_sqrt=False, bias_correction=True
            ),
            scale_by_specs(specs, self.rules),
            *add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
        averaged = contrib.schedule_free(
            steps, rate, self.b1, weight_lr_power=self.weight_lr_power
        )
        return in_float32(averaged)


def evaluation_params(state: optax.OptState, params: Any) -> Any:
    """Returns the parameters to evaluate, given those that are trained.

    Args:
        state: of any optimizer; a chain, `optax.multi_transform` or a wrapper may
            surround the schedule-free part.
        params: the trained parameters.

    Returns:
        The average x where a schedule-free optimizer is at work, in the dtypes of
        `params`; elsewhere `params` themselves.
    """
    averages = [
        node
        for node in jax.tree.leaves(state, is_leaf=_is_schedule_free)
        if _is_schedule_free(node)
    ]
    for average in averages:
        params = jax.tree.map(
            lambda y, z, b1=average.b1: y if is_masked(z) else _average(y, z, b1),
            params,
            average.z,
            is_leaf=is_masked,
        )
    return params


def _average(y: jax.Array, z: jax.Array, b1: jax.Array) -> jax.Array:
    return ((y - (1.0 - b1) * z) / b1).astype(y.dtype)


def _is_schedule_free(node: Any) -> bool:
    return isinstance(node, contrib.ScheduleFreeState)
