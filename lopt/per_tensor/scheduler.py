"""The scheduler of VeLO and Celo: an LSTM that scales the steps of whole tensors.

Its inputs are nine features of the fraction of the run done, nine of the loss (see
`loss_buffer`) and, in VeLO, twelve of each tensor (see `tensor_features`). Its outputs
are a factor on each tensor's step and, in VeLO, the weights by which a bank of networks
is mixed into the one that moves that tensor.

All tensors are one batch. They exchange information before the LSTM: the maximum over
tensors of one layer is added to each tensor's input. In Celo nothing distinguishes
tensors, so there is one row for all.

The original has one more layer before the exchange, whose output is not used; its
weights are no part of θ here.

References:
    Metz et al., VeLO, arXiv:2211.09760, Appendix B; Moudgil et al., Celo,
    arXiv:2501.12670, Section 3; `HyperV2` of google/learned_optimization.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt import clipping, dense
from lopt.base import NumSteps, Specs, Theta, Transform, need_loss
from lopt.per_parameter.accumulators import TensorState, present
from lopt.per_tensor import loss_buffer, lstm, statistics
from lopt.per_tensor.loss_buffer import LossBuffer
from lopt.per_tensor.lstm import LSTMState
from lopt.placement import Blank, vary
from lopt.tensors import Arrangement, FactoredAxes, init_states, need, over
from parametrization.rules import Rules

FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
"""Fractions of the run at which the first features change sign."""
RANKS = 5
"""Length of the one-hot rank, 0 to 4."""
STEP_SCALE = 0.1
"""Factor on a step when the exponent is 0, where factors are exponentials."""


class Schedule(NamedTuple):
    """Outputs for R tensors."""

    step_mult: jax.Array  # [R], factor on the step
    controls: jax.Array | None  # [R, B], weights of the bank; None without one


class TensorLSTMState(NamedTuple):
    """State between steps."""

    lstm: LSTMState  # [R, H]
    losses: LossBuffer


class ScheduledState(NamedTuple):
    """State of an optimizer with a scheduler."""

    step: jax.Array  # [] int32, updates done
    tensors: Any  # tree of TensorState, parallel to the parameters
    scheduler: TensorLSTMState


Rule = Callable[..., tuple[jax.Array, TensorState]]
"""(updates done with this one, state, gradient, parameter, schedule of the tensor,
gradient scale, step scale) -> (step `[*S]`, to be added, and new state)."""


@dataclasses.dataclass(frozen=True)
class TensorLSTM:
    """The scheduling network, a part of an optimizer."""

    hidden_size: int
    """Units of the LSTM and of the layers before it."""
    tensor_features: int = 0
    """Features of each tensor; 0: one row for all tensors."""
    bank_size: int = 0
    """Networks in the bank that is mixed; 0: no bank."""
    exponential: bool = False
    """Whether factors on steps are 0.1·exp(output), as in Celo, or the output."""
    bugged_losses: bool = False
    """Whether the loss features are those of published VeLO (see `loss_buffer`)."""

    @property
    def num_inputs(self) -> int:
        """Number of inputs of a row."""
        return len(FRACTIONS) + loss_buffer.FEATURES + self.tensor_features

    def init(self, key: jax.Array) -> Theta:
        """Draws the weights.

        Returns:
            `{"exchange", "inputs", "step": layers {"kernel", "bias"}, "lstm" (see
            `lstm.init`)}` and, with a bank, the layer `"controls"`.
        """
        keys = jax.random.split(key, 5)
        size = self.hidden_size
        theta = {
            "exchange": dense.init(keys[0], self.num_inputs, size),
            "inputs": dense.init(keys[1], self.num_inputs, size),
            "lstm": lstm.init(keys[2], size, size),
            "step": dense.init(keys[3], size, 1),
        }
        if self.bank_size:
            theta["controls"] = dense.init(keys[4], size, self.bank_size)
        return theta

    def initial_state(self, theta: Theta, num_tensors: int) -> TensorLSTMState:
        """Returns the state before the first step."""
        rows = num_tensors if self.tensor_features else 1
        memory = lstm.initial_state(theta["lstm"], rows)
        dtype = jnp.promote_types(memory.hidden.dtype, jnp.float32)
        return TensorLSTMState(memory, loss_buffer.init(dtype))

    def transformation(
        self,
        theta: Theta,
        specs: Specs,
        num_steps: NumSteps,
        *,
        name: str,
        empty: Callable[[Blank], TensorState],
        rule: Rule,
        rules: Rules,
        factored_axes: FactoredAxes = "tensor",
        scheduled: bool = True,
    ) -> Transform:
        """Builds the optimizer that moves every tensor by a scheduled rule.

        Args:
            theta: as from `init`.
            specs: tree of `ParamSpec`, parallel to the parameters.
            num_steps: `[]`, updates of the whole run; may be traced.
            name: of the optimizer, for error messages.
            empty: makes the accumulators of one tensor.
            rule: moves one tensor.
            rules: parametrization of the steps.
            factored_axes: shape in which the rule sees a tensor.
            scheduled: whether the LSTM is at work; else all factors are 1.
        """

        def init(params: optax.Params) -> ScheduledState:
            rows = Arrangement(params, params, specs).num_tensors
            return ScheduledState(
                step=jnp.zeros([], jnp.int32),
                tensors=init_states(params, specs, empty, factored_axes),
                scheduler=vary(self.initial_state(theta, rows), params),
            )

        def update(
            updates: optax.Updates,
            state: ScheduledState,
            params: optax.Params | None = None,
            *,
            loss: jax.typing.ArrayLike | None = None,
            value: jax.typing.ArrayLike | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, ScheduledState]:
            del extra_args
            arrangement = Arrangement(updates, need(params, name), specs, factored_axes)
            schedule, scheduler = Schedule(jnp.ones(1), None), state.scheduler
            if scheduled:
                loss = need_loss(loss, value, name)
                if self.tensor_features and not arrangement.groups:
                    return updates, state._replace(step=state.step + 1)
                seen = self._seen(arrangement, state, params)
                schedule, scheduler = self.apply(
                    theta, scheduler, loss, state.step, num_steps, seen
                )
            if not self.tensor_features:
                rows = (arrangement.num_tensors,)
                schedule = Schedule(jnp.broadcast_to(schedule.step_mult, rows), None)
            steps, new = arrangement.move(
                functools.partial(rule, state.step + 1),
                state.tensors,
                arrangement.stack(updates),
                arrangement.stack(params),
                arrangement.split(schedule),
                arrangement.each(rules.gradient_scale),
                arrangement.each(rules.step_scale),
            )
            return steps, ScheduledState(state.step + 1, new, scheduler)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def _seen(
        self, arrangement: Arrangement, state: ScheduledState, params: Any
    ) -> jax.Array | None:
        """Returns features of all tensors `[R, F]`, before this update."""
        if not self.tensor_features:
            return None
        stacks = arrangement.stack(params), arrangement.stack_states(state.tensors)
        rows = [over(tensor_features, *stack) for stack in zip(*stacks, strict=True)]
        dtype = state.scheduler.losses.means.dtype
        return jnp.concatenate([row.astype(dtype) for row in rows])

    def apply(
        self,
        theta: Theta,
        state: TensorLSTMState,
        loss: jax.typing.ArrayLike,
        step: jax.Array,
        num_steps: int | jax.Array,
        tensors: jax.Array | None = None,
    ) -> tuple[Schedule, TensorLSTMState]:
        """Takes one step.

        Args:
            theta: as from `init`.
            state: of the step before.
            loss: `[]`, before the update.
            step: `[]`, updates done.
            num_steps: `[]`, updates of the whole run; may be traced.
            tensors: `[R, tensor_features]`, if there are any.
        """
        inputs, losses = self.inputs(state, loss, step, num_steps, tensors)
        common = jax.nn.relu(dense.apply(theta["exchange"], inputs))
        common = jnp.max(common, axis=0, keepdims=True)
        seen = dense.apply(theta["inputs"], inputs) + common
        outputs, memory = lstm.apply(theta["lstm"], seen, state.lstm)
        factor = dense.apply(theta["step"], outputs)[:, 0]
        if self.exponential:
            factor = STEP_SCALE * jnp.exp(factor)
        controls = None
        if self.bank_size:
            controls = dense.apply(theta["controls"], outputs)
        return Schedule(factor, controls), TensorLSTMState(memory, losses)

    def inputs(
        self,
        state: TensorLSTMState,
        loss: jax.typing.ArrayLike,
        step: jax.Array,
        num_steps: int | jax.Array,
        tensors: jax.Array | None = None,
    ) -> tuple[jax.Array, LossBuffer]:
        """Returns the inputs `[R, num_inputs]`, and the buffer with this loss."""
        length = loss_buffer.TEN_STEPS if self.bugged_losses else num_steps
        losses = loss_buffer.update(state.losses, loss, length)
        dtype = losses.means.dtype
        fractions = fraction_features(step, num_steps, dtype)
        shared = jnp.concatenate([fractions, loss_buffer.features(losses, length)])
        if tensors is None:
            return shared[None], losses
        shared = jnp.broadcast_to(shared[None], (tensors.shape[0], shared.shape[0]))
        seen = clipping.finite(tensors.astype(dtype))
        return jnp.concatenate([shared, seen], axis=1), losses


def fraction_features(
    step: jax.Array, num_steps: int | jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """Returns tanh(10·(step/num_steps − fraction)) for each fraction, `[9]`."""
    done = jnp.asarray(step, dtype) / jnp.maximum(jnp.asarray(num_steps, dtype), 1.0)
    return jnp.tanh(10.0 * (done - jnp.asarray(FRACTIONS, dtype)))


def num_tensor_features(num_decays: int) -> int:
    """Returns the length of `tensor_features` for a number of momenta."""
    return 1 + RANKS + 2 * num_decays


def tensor_features(param: jax.Array, state: TensorState) -> jax.Array:
    """Returns VeLO's features of one tensor, accumulators before this update, `[12]`.

    Size of the second moment, rank (axes longer than 1, one-hot), and variances of
    momenta and second moment; all in units of the parameters' root mean square. As
    published, the second moment's variance is around the mean of each *momentum*.
    """
    unit = jax.lax.rsqrt(jnp.maximum(1e-9, jnp.mean(param**2)))
    momentum = unit * state.momentum
    second = unit * present(state.second_moment, "second moment")
    axes = tuple(range(1, momentum.ndim))
    center = jnp.mean(momentum, axis=axes, keepdims=True)
    rank = sum(size > 1 for size in param.shape)
    return jnp.concatenate(
        [
            _magnitude(jnp.mean(second, axis=axes)),
            jax.nn.one_hot(rank, RANKS, dtype=param.dtype),
            _magnitude(jnp.mean(jnp.square(momentum - center), axis=axes)),
            _magnitude(jnp.mean(jnp.square(second - center), axis=axes)),
        ]
    )


def _magnitude(x: jax.Array) -> jax.Array:
    return 0.5 * statistics.log_magnitude(10.0 * x)
