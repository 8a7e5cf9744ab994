"""VeLO: a network for every tensor, mixed from a bank by an LSTM that sees them all.

In every step the scheduler (`lopt.per_tensor.scheduler`) gives each tensor a factor on
its step and weights c of a bank of B tiny networks; the network that moves the tensor
(`scaled_mlp`) has the weights 100·mean_b(c_b·bank_b). With `rules=ADAM_LIKE` it is
μVeLO.

References:
    Metz et al., VeLO: Training versatile learned optimizers by scaling up,
    arXiv:2211.09760; Thérien et al., μLO, arXiv:2406.00153 (μVeLO); `HyperV2` of
    google/learned_optimization.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from configuration.fields import configuration, later
from lopt import checks
from lopt.base import NumSteps, Specs, Theta, Transform
from lopt.per_parameter import scaled_mlp
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.forms import Execution
from lopt.per_parameter.network import Layers
from lopt.per_parameter.scaled_mlp import VELO_EPSILONS, ScaledMLP
from lopt.per_tensor.scheduler import Schedule, TensorLSTM, num_tensor_features
from lopt.placement import under_any_mesh
from lopt.tensors import FactoredAxes
from parametrization.rules import STANDARD, Rules

MIX_MULT = 100.0
"""Factor on the mixed weights."""


@configuration
class VeLO:
    """The learned optimizer VeLO; its update takes the loss."""

    lstm_hidden_size: int = 128
    """Units of the scheduler."""
    ff_hidden_size: int = 4
    """Units of each hidden layer of the per-parameter networks."""
    ff_hidden_layers: int = 2
    """Hidden layers of the per-parameter networks."""
    param_inits: int = 64
    """Networks in the bank."""
    step_mult: float = 0.001
    """Scale of a step."""
    exp_mult: float = 0.001
    """Scale of the learned log-magnitude of a step."""
    param_scale_mult: bool | None = None
    """Whether steps are in units of a tensor's root mean square, as published; None:
    only outside μP."""
    bugged_losses: bool = False
    """Whether the loss features are those of published VeLO (see `loss_buffer`)."""
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
        checks.positive_integer(self, "lstm_hidden_size", "param_inits")
        scaled_mlp.check_fields(self)

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
        return TensorLSTM(
            self.lstm_hidden_size,
            tensor_features=num_tensor_features(len(self.momentum_decays)),
            bank_size=self.param_inits,
            bugged_losses=self.bugged_losses,
        )

    def init(self, key: jax.Array) -> Theta:
        """Draws the weights of the scheduler and of the bank, networks first.

        Returns:
            `{"scheduler": (see `TensorLSTM.init`), "bank": {"layer_i": {"kernel":
            [B, in, out], "bias": [B, out]}}}`.
        """
        first, second = jax.random.split(key)
        keys = jax.random.split(second, self.param_inits)
        return {
            "scheduler": self.scheduler.init(first),
            "bank": jax.vmap(self.rule.init)(keys),
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
            assert schedule.controls is not None
            layers = mix(theta["bank"], schedule.controls)
            grad, state = self.rule.accumulate(state, grad, gradient_scale)
            step = self.rule.step(layers, grad, param, state)
            return -(schedule.step_mult * step_scale) * step, state

        return self.scheduler.transformation(
            theta["scheduler"],
            specs,
            num_steps,
            name="VeLO",
            empty=self.rule.empty,
            rule=rule,
            rules=self.rules,
            factored_axes=self.factored_axes,
        )


def mix(bank: Layers, controls: jax.Array) -> Layers:
    """Mixes the network of one tensor from the bank, by weights `[B]`."""
    weights = MIX_MULT / controls.shape[0] * controls
    return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), bank)


PUBLISHED = VeLO(lstm_hidden_size=512, param_inits=256, bugged_losses=True)
"""The configuration of the weights that were published."""
