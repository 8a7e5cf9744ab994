"""Celo: one small learned rule for all parameters, and a learned scheduler above it.

The rule is VeLO's (`scaled_mlp`) with a single network instead of a bank; the scheduler
(`tensor_lstm`) gives a factor on the step, from how far the run is and how the loss
develops. They are learned one after the other: first the rule, without the scheduler,
then the scheduler, the rule being frozen. That is what made meta-training cheap.

References:
    Moudgil et al., Celo: Training versatile learned optimizers on a compute diet,
    arXiv:2501.12670; `celo` of amoudgl/celo.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration, later
from lopt import checks
from lopt.base import Specs, Theta
from lopt.per_parameter import scaled_mlp
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.forms import Execution
from lopt.per_parameter.network import Layers
from lopt.per_parameter.scaled_mlp import VELO_EPSILONS, ScaledMLP
from lopt.per_tensor.scheduler import ScheduledState, TensorLSTM
from lopt.tensors import Arrangement, FactoredAxes, need, need_loss
from parametrization.rules import STANDARD, Rules

Part = Literal["rule", "scheduler"]
"""A sub-tree of θ."""
Phase = Literal["rule", "scheduler", "both"]


@configuration
class Celo:
    """The learned optimizer Celo; with a scheduler, its update takes the loss."""

    lstm_hidden_size: int = 64
    """Units of the scheduler."""
    ff_hidden_size: int = 4
    """Units of each hidden layer of the rule's network."""
    ff_hidden_layers: int = 2
    """Hidden layers of the rule's network."""
    step_mult: float = 0.001
    """Scale of a step."""
    exp_mult: float = 0.001
    """Scale of the learned log-magnitude of a step."""
    param_scale_mult: bool | None = None
    """Whether steps are in units of a tensor's root mean square, as published; None:
    yes, but not in μP, which says how large a step may be."""
    phase: Phase = "both"
    """What meta-training learns: the rule (the scheduler is off), the scheduler (the
    rule is frozen), or both. An optimizer that is only used is in either of the last
    two, which are the same but for `frozen`."""
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta."""
    second_moment_decay: float = 0.999
    """Decay of the second moment."""
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the factored second moments, as many as momenta."""
    epsilons: Epsilons = VELO_EPSILONS
    """Floors inside the features."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP) or STANDARD; gradients are
    brought to the base model's size, as in `lopt.baselines.Adam`."""
    execution: Execution = later(Execution())
    """How the per-parameter network is executed."""
    factored_axes: FactoredAxes = later("matrix", absent="tensor")
    """What second moments are factored over: a "matrix" of all fan-in by all fan-out
    axes, or the two largest axes of the "tensor" (see `lopt.tensors`)."""

    def __post_init__(self) -> None:
        checks.positive_integer(self, "lstm_hidden_size")
        scaled_mlp.check_fields(self)

    @property
    def frozen(self) -> tuple[Part, ...]:
        """The parts of θ, keys at its top level, that this phase does not learn."""
        frozen: dict[Phase, tuple[Part, ...]] = {
            "rule": ("scheduler",),
            "scheduler": ("rule",),
            "both": (),
        }
        return frozen[self.phase]

    @property
    def rule(self) -> ScaledMLP:
        """The part that moves parameters."""
        return scaled_mlp.of(self)

    @property
    def scheduler(self) -> TensorLSTM:
        """The part that sets the factor on the step."""
        return TensorLSTM(self.lstm_hidden_size, exponential=True)

    def init(self, key: jax.Array) -> Theta:
        """Weights of both parts, in every phase.

        Returns:
            `{"rule": {"layer_i": {"kernel", "bias"}}, "scheduler": (see
            `TensorLSTM.init`)}`.
        """
        first, second = jax.random.split(key)
        return {
            "rule": self.rule.init(first),
            "scheduler": self.scheduler.init(second),
        }

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that θ describes (see `LearnedOptimizer.as_optax`)."""

        def init(params: optax.Params) -> ScheduledState:
            return self.scheduler.begin(
                theta["scheduler"], params, specs, self.rule.empty, self.factored_axes
            )

        def update(
            updates: optax.Updates,
            state: ScheduledState,
            params: optax.Params | None = None,
            *,
            loss: jax.typing.ArrayLike | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, ScheduledState]:
            del extra_args
            arrangement = Arrangement(
                updates, need(params, "Celo"), specs, self.factored_axes
            )
            factor, scheduler = jnp.ones([], jnp.float32), state.scheduler
            if self.phase != "rule":
                loss = need_loss(loss, "Celo")
                schedule, scheduler = self.scheduler.apply(
                    theta["scheduler"], state.scheduler, loss, state.step, num_steps
                )
                factor = schedule.step_mult[0]
            steps, new = arrangement.move(
                self._mover(theta["rule"], factor),
                state.tensors,
                arrangement.stack(updates),
                arrangement.stack(params),
                arrangement.each(self.rules.gradient_scale),
                arrangement.each(self.rules.step_scale),
            )
            return steps, ScheduledState(state.step + 1, new, scheduler)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def _mover(self, layers: Layers, factor: jax.Array) -> Any:
        """The rule for one tensor."""

        def move(
            state: TensorState,
            grad: jax.Array,
            param: jax.Array,
            gradient_scale: jax.Array,
            step_scale: jax.Array,
        ) -> tuple[jax.Array, TensorState]:
            grad, state = self.rule.accumulate(state, grad, gradient_scale)
            step = self.rule.step(layers, grad, param, state)
            return -(factor.astype(step.dtype) * step_scale) * step, state

        return move
