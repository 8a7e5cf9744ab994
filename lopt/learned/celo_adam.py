"""Celo-Adam: Adam whose learning rate a learned scheduler sets, step by step.

The scheduler is Celo's (`lopt.per_tensor.scheduler`). The rule is Adam with bias
correction and two floors, m̂/(√(v̂ + 10⁻¹⁰) + ε).

References:
    Moudgil et al., Celo, arXiv:2501.12670, Section 5; `celo_adam` of amoudgl/celo.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from lopt import checks, clipping
from lopt.base import NumSteps, Specs, Theta, Transform
from lopt.baselines import base
from lopt.per_parameter import accumulators
from lopt.per_parameter.accumulators import Complements, TensorState, present
from lopt.per_parameter.epsilons import PAPER
from lopt.per_tensor.scheduler import Schedule, TensorLSTM
from lopt.placement import Blank, under_any_mesh
from parametrization.rules import STANDARD, Rules

_INNER_FLOOR = 1e-10


@configuration
class CeloAdam:
    """Adam with a learned scheduler; its update takes the loss."""

    lstm_hidden_size: int = 64
    """Units of the scheduler."""
    step_mult: float = 0.001
    """Scale of a step: the learning rate is this times the scheduler's factor."""
    b1: float = 0.9
    """Decay of the momentum."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP), COMPLETEP or STANDARD;
    gradients are brought to the base model's size, as in `lopt.baselines.Adam`."""

    def __post_init__(self) -> None:
        checks.positive_integer(self, "lstm_hidden_size")
        checks.positive(self, "step_mult")
        checks.decays(self, "b1", "b2")
        checks.within(self, "eps", 0.0, 1e3)
        base.check_normalized(self.rules, "Celo-Adam's")

    @property
    def scheduler(self) -> TensorLSTM:
        """The network that schedules."""
        return TensorLSTM(self.lstm_hidden_size, exponential=True)

    def init(self, key: jax.Array) -> Theta:
        """Draws θ: `{"scheduler": (see `TensorLSTM.init`)}`."""
        return {"scheduler": self.scheduler.init(key)}

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""

        def empty(like: Blank) -> TensorState:
            return accumulators.init(like, 1, num_factored=0)

        def rule(
            count: jax.Array,
            old: TensorState,
            grad: jax.Array,
            param: jax.Array,
            schedule: Schedule,
            gradient_scale: jax.Array,
            step_scale: jax.Array,
        ) -> tuple[jax.Array, TensorState]:
            del param
            dtype, done = grad.dtype, count.astype(grad.dtype)
            grad = clipping.bounded(grad / gradient_scale, clipping.GRADIENT_BOUND)
            weights = [accumulators.fixed((b,), dtype) for b in (self.b1, self.b2)]
            new = accumulators.update(old, grad, Complements(*weights), PAPER)
            m = new.momentum[0] / accumulators.total_weight(self.b1, done)
            second = present(new.second_moment, "second moment")[0]
            v = second / accumulators.total_weight(self.b2, done)
            direction = m / (self.eps + jnp.sqrt(v + _INNER_FLOOR))
            scale = self.step_mult * step_scale * schedule.step_mult.astype(dtype)
            return -scale * direction, new

        return self.scheduler.transformation(
            theta["scheduler"],
            specs,
            num_steps,
            name="CeloAdam",
            empty=empty,
            rule=rule,
            rules=self.rules,
        )
