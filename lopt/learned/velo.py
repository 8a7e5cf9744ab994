"""VeLO: a network for every tensor, mixed from a bank by an LSTM that sees them all.

In every step the scheduling LSTM (`tensor_lstm`) gives each tensor a factor and weights
c of a bank of B tiny networks; the network that moves the tensor's parameters
(`scaled_mlp`) has the weights 100·mean_b(c_b·bank_b).

With `rules=ADAM_LIKE` it is μVeLO.

References:
    Metz et al., VeLO: Training versatile learned optimizers by scaling up,
    arXiv:2211.09760; Thérien et al., μLO, arXiv:2406.00153 (μVeLO); `HyperV2` of
    google/learned_optimization.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration, later
from lopt import checks, tensors
from lopt.base import Specs, Theta
from lopt.per_parameter import scaled_mlp
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.forms import Execution
from lopt.per_parameter.network import Layers
from lopt.per_parameter.scaled_mlp import VELO_EPSILONS, ScaledMLP
from lopt.per_tensor.scheduler import (
    ScheduledState,
    TensorLSTM,
    num_tensor_features,
    tensor_features,
)
from lopt.tensors import Arrangement, FactoredAxes, need, need_loss
from parametrization.rules import STANDARD, Rules

MIX_MULT = 100.0
"""Factor on the mixed weights."""


@configuration
class VeLO:
    """The learned optimizer VeLO; its update takes the keyword `loss`.

    Published weights have the configuration `PUBLISHED`.
    """

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
    yes, but not in μP, which says how large a step may be."""
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
    """How the per-parameter network is executed."""
    factored_axes: FactoredAxes = later("matrix", absent="tensor")
    """What second moments are factored over: a "matrix" of all fan-in by all fan-out
    axes, or the two largest axes of the "tensor" (see `lopt.tensors`)."""

    def __post_init__(self) -> None:
        checks.positive_integer(self, "lstm_hidden_size", "param_inits")
        scaled_mlp.check_fields(self)

    @property
    def rule(self) -> ScaledMLP:
        """The half that moves parameters."""
        return scaled_mlp.of(self)

    @property
    def scheduler(self) -> TensorLSTM:
        """The half that looks at tensors."""
        return TensorLSTM(
            self.lstm_hidden_size,
            tensor_features=num_tensor_features(len(self.momentum_decays)),
            bank_size=self.param_inits,
            bugged_losses=self.bugged_losses,
        )

    def init(self, key: jax.Array) -> Theta:
        """Weights of the scheduler and of the bank, networks first.

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
                updates, need(params, "VeLO"), specs, self.factored_axes
            )
            loss = need_loss(loss, "VeLO")
            if not arrangement.groups:
                return updates, state._replace(step=state.step + 1)
            values = arrangement.stack(params)
            states = arrangement.stack_states(state.tensors)
            # The scheduler sees the accumulators as the last update left them.
            looks = zip(values, states, strict=True)
            rows = [tensors.over(tensor_features, *stacks) for stacks in looks]
            dtype = state.scheduler.losses.means.dtype
            seen = jnp.concatenate([row.astype(dtype) for row in rows])
            schedule, scheduler = self.scheduler.apply(
                *(theta["scheduler"], state.scheduler, loss, state.step, num_steps),
                tensors=seen,
            )
            steps, new = arrangement.move(
                self._mover(theta["bank"]),
                state.tensors,
                arrangement.stack(updates),
                values,
                arrangement.split(schedule),
                arrangement.each(self.rules.gradient_scale),
                arrangement.each(self.rules.step_scale),
            )
            return steps, ScheduledState(state.step + 1, new, scheduler)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def _mover(self, bank: Layers) -> Any:
        """The rule for one tensor, its network mixed from the bank."""

        def move(
            state: TensorState,
            grad: jax.Array,
            param: jax.Array,
            schedule: Any,
            gradient_scale: jax.Array,
            step_scale: jax.Array,
        ) -> tuple[jax.Array, TensorState]:
            layers = mix(bank, schedule.controls)
            grad, state = self.rule.accumulate(state, grad, gradient_scale)
            step = self.rule.step(layers, grad, param, state)
            return -(schedule.step_mult * step_scale) * step, state

        return move


def mix(bank: Layers, controls: jax.Array) -> Layers:
    """The network of one tensor, from the bank and its weights `[B]`."""
    weights = MIX_MULT / controls.shape[0] * controls
    return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), bank)


PUBLISHED = VeLO(lstm_hidden_size=512, param_inits=256, bugged_losses=True)
"""The configuration of the weights that were published."""
