"""Celo: one small learned rule for all parameters, and a learned scheduler above it.

The rule is VeLO's (`scaled_mlp`) with a single network instead of a bank; the scheduler
(`lopt.per_tensor.scheduler`) gives one factor on all steps, from the fraction of the
run done and the progress of the loss. Meta-training is cheap because they are learned
one after the other: first the rule, without the scheduler, then the scheduler, with the
rule frozen.

References:
    Moudgil et al., Celo: Training versatile learned optimizers on a compute diet,
    arXiv:2501.12670; `celo` of amoudgl/celo.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import jax

from configuration.fields import configuration, later
from lopt import checks
from lopt.base import NumSteps, Specs, Theta, Transform
from lopt.per_parameter import scaled_mlp
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.forms import Execution
from lopt.per_parameter.scaled_mlp import VELO_EPSILONS, ScaledMLP
from lopt.per_tensor.scheduler import Schedule, TensorLSTM
from lopt.placement import under_any_mesh
from lopt.tensors import FactoredAxes
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
    only outside μP."""
    phase: Phase = "both"
    """Part that meta-training learns: the rule (the scheduler is off), the scheduler
    (the rule is frozen), or both. For use, the last two are the same."""
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
    """Execution of the per-parameter network."""
    factored_axes: FactoredAxes = later("matrix", absent="tensor")
    """Axes of factored second moments: all fan-in by all fan-out ("matrix"), or the two
    largest ("tensor"; see `lopt.tensors`)."""
    NOT_STORED: ClassVar[tuple[str, ...]] = ("execution",)
    """Fields that are no property of trained weights."""

    def __post_init__(self) -> None:
        checks.positive_integer(self, "lstm_hidden_size")
        scaled_mlp.check_fields(self)

    @property
    def frozen(self) -> tuple[Part, ...]:
        """Keys at θ's top level that this phase does not learn."""
        frozen: dict[Phase, tuple[Part, ...]] = {
            "rule": ("scheduler",),
            "scheduler": ("rule",),
            "both": (),
        }
        return frozen[self.phase]

    @property
    def steps_follow_size(self) -> bool:
        """Whether a step is in units of its tensor (see `lopt.base.follows_size`)."""
        return self.rule.param_scale_mult

    @property
    def rule(self) -> ScaledMLP:
        """The rule that moves one tensor."""
        return scaled_mlp.of(self)

    @property
    def scheduler(self) -> TensorLSTM:
        """The network that schedules."""
        return TensorLSTM(self.lstm_hidden_size, exponential=True)

    def init(self, key: jax.Array) -> Theta:
        """Draws the weights of both parts, in every phase.

        Returns:
            `{"rule": {"layer_i": {"kernel", "bias"}}, "scheduler": (see
            `TensorLSTM.init`)}`.
        """
        first, second = jax.random.split(key)
        return {
            "rule": self.rule.init(first),
            "scheduler": self.scheduler.init(second),
        }

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""

        def rule(
            count: jax.Array,
            state: TensorState,
            grad: jax.Array,
            param: jax.Array,
            schedule: Schedule,
            gradient_scale: jax.Array,
            step_scale: jax.Array,
        ) -> tuple[jax.Array, TensorState]:
            del count
            grad, state = self.rule.accumulate(state, grad, gradient_scale)
            step = self.rule.step(theta["rule"], grad, param, state)
            return -(schedule.step_mult.astype(step.dtype) * step_scale) * step, state

        return self.scheduler.transformation(
            theta["scheduler"],
            specs,
            num_steps,
            name="Celo",
            empty=self.rule.empty,
            rule=rule,
            rules=self.rules,
            factored_axes=self.factored_axes,
            scheduled=self.phase != "rule",
        )
