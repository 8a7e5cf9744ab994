"""Celo-Adam: Adam whose learning rate a learned scheduler sets, step by step.

The scheduler is the LSTM of `tensor_lstm`, without tensor features: it sees how far the
run is and how the loss develops. The rule is Adam with bias correction and two floors,
m̂/(√(v̂ + 10⁻¹⁰) + ε).

References:
    Moudgil et al., Celo, arXiv:2501.12670, Section 5; `celo_adam` of amoudgl/celo.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from lopt import checks, sanitizer
from lopt.base import Specs, Theta
from lopt.baselines import base
from lopt.per_parameter import accumulators
from lopt.per_parameter.accumulators import Complements, TensorState, present
from lopt.per_parameter.epsilons import PAPER
from lopt.per_tensor.scheduler import ScheduledState, TensorLSTM
from lopt.tensors import Arrangement, need, need_loss
from parametrization.rules import STANDARD, Rules

_INNER_FLOOR = 1e-10


@configuration
class CeloAdam:
    """Adam with a learned scheduler; its update takes the keyword `loss`."""

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
        """θ: `{"scheduler": (see `TensorLSTM.init`)}`."""
        return {"scheduler": self.scheduler.init(key)}

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that θ describes (see `LearnedOptimizer.as_optax`)."""

        def empty(shape: tuple[int, ...], dtype: jnp.dtype) -> TensorState:
            return accumulators.init(shape, 1, dtype, num_factored=0)

        def init(params: optax.Params) -> ScheduledState:
            return self.scheduler.begin(theta["scheduler"], params, specs, empty)

        def update(
            updates: optax.Updates,
            state: ScheduledState,
            params: optax.Params | None = None,
            *,
            loss: jax.typing.ArrayLike | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, ScheduledState]:
            del extra_args
            arrangement = Arrangement(updates, need(params, "CeloAdam"), specs)
            loss = need_loss(loss, "CeloAdam")
            schedule, scheduler = self.scheduler.apply(
                theta["scheduler"], state.scheduler, loss, state.step, num_steps
            )
            steps, new = arrangement.move(
                self._mover(schedule.step_mult[0], state.step + 1),
                state.tensors,
                arrangement.stack(updates),
                arrangement.each(self.rules.gradient_scale),
                arrangement.each(self.rules.step_scale),
            )
            return steps, ScheduledState(state.step + 1, new, scheduler)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def _mover(self, factor: jax.Array, count: jax.Array) -> Any:
        """The rule for one tensor; `count` updates are done with this one."""

        def move(
            old: TensorState,
            grad: jax.Array,
            gradient_scale: jax.Array,
            step_scale: jax.Array,
        ) -> tuple[jax.Array, TensorState]:
            dtype = grad.dtype
            grad = sanitizer.bounded(grad / gradient_scale, sanitizer.GRADIENT_BOUND)
            weights = [accumulators.fixed((b,), dtype) for b in (self.b1, self.b2)]
            new = accumulators.update(old, grad, Complements(*weights), PAPER)
            done = count.astype(dtype)
            m = new.momentum[0] / accumulators.total_weight(self.b1, done)
            second = present(new.second_moment, "second moment")[0]
            v = second / accumulators.total_weight(self.b2, done)
            direction = m / (self.eps + jnp.sqrt(v + _INNER_FLOOR))
            scale = self.step_mult * step_scale * factor.astype(dtype)
            return -scale * direction, new

        return move
