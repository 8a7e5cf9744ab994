"""Schedule-free AdamW: an average of iterates in place of a schedule.

Three sequences run side by side: z takes plain steps, x is the weighted average of all
z, and gradients are taken at y = (1 − b1)·z + b1·x. What a training loop holds as
`params` is y; what is meant to be evaluated is x. `evaluation_params` computes it from
y and the optimizer's state, wherever in the state of a chain the sequences are kept;
for every other optimizer it returns the parameters as they are. Training losses are
those at y; what evaluation measures on held-out data is measured at x.
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
from lopt.schedules import AnySchedule
from parametrization.rules import STANDARD, Rules


@configuration
class ScheduleFreeAdamW(base.RateTuned):
    """Schedule-free AdamW (Defazio et al., arXiv:2405.15682).

    z moves by steps of Adam without momentum, which are Θ(1) per element, and x and y
    are averages of z: the Adam-like column holds. **Evaluate at**
    `evaluation_params(state, params)`, not at `params`.
    """

    learning_rate: float = 2.5e-3
    """Learning rate of `init`'s θ."""
    schedule: AnySchedule = "constant"
    """constant or, better, `Constant(warmup=...)`: decay is what the average is for."""
    b1: float = 0.9
    """Share of the average in the point at which gradients are taken; not 0."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment; in μP it shrinks as gradients do."""
    weight_decay: float = 0.0
    """Decoupled weight decay at y, multiplied by the learning rate but not by μP's step
    scale."""
    weight_lr_power: float = 2.0
    """An iterate's weight in the average is the largest learning rate so far to this
    power."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, ADAM_LIKE or COMPLETEP."""

    def __post_init__(self) -> None:
        base.check_common(self)
        base.check_normalized(self.rules, "schedule-free Adam's")
        checks.positive(self, "eps")
        checks.decay(self, "b1")
        if self.b1 == 0:
            raise ValueError(
                "b1 = 0.0 must lie in (0, 1): the average is found by 1/b1"
            )
        checks.decay(self, "b2")
        checks.not_negative(self, "weight_decay", "weight_lr_power")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer with any learning rate as a function of the step."""
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
    """The parameters to evaluate, given those that are trained.

    Args:
        state: of any optimizer: an optax chain, `optax.multi_transform` or a wrapper
            may be around the schedule-free part.
        params: what the updates were added to.

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
