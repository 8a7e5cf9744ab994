"""The inner loop: its state and its step, the same for training and for evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from lopt.base import LearnedOptimizer, Theta
from lopt.per_parameter.precision import Precision
from tasks import variation
from tasks.base import Batch, Task
from tasks.variation import UNVARIED, Variant


@configuration
class Precisions:
    """Floating-point precisions of inner training."""

    model: Precision = "float32"
    """Precision of the model's forward and backward pass."""
    features: Precision = "float32"
    """Precision of the products of the optimizer's per-parameter networks."""


@dataclasses.dataclass(frozen=True)
class InnerLoop:
    """A task and the optimizer that trains it."""

    task: Task
    lopt: LearnedOptimizer
    variant: Variant = UNVARIED
    """Peculiarities of this run of the task; may be traced."""
    precision: Precision = "float32"
    """Precision of the model; parameters and their gradients stay in float32."""

    def optimizer(
        self, theta: Theta, length: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer that θ describes, for a run of `length` steps."""
        return self.lopt.as_optax(theta, self.task.specs(), length)

    def loss(
        self, params: Any, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns a batch's loss `[]` in the task's unit, and auxiliary scalars."""
        if self.precision != "float32":
            dtype = jnp.dtype(self.precision)
            params = jax.tree.map(lambda x: x.astype(dtype), params)
        return variation.loss(self.task, self.variant, params, key, batch)


class InnerState(NamedTuple):
    """One training run in progress; scalars unless vmapped."""

    params: Any
    opt_state: Any
    step: jax.Array  # [] int32, inner steps taken
    length: jax.Array  # [] int32, inner steps of the episode


class TrackedState(NamedTuple):
    """An `InnerState` that remembers its smallest loss.

    A class of its own, since a further field of `InnerState`, even an empty one, would
    change the tree that the checkpoints of all other runs hold.
    """

    params: Any
    opt_state: Any
    step: jax.Array  # [] int32, inner steps taken
    length: jax.Array  # [] int32, inner steps of the episode
    minimum: jax.Array  # [] smallest normalized loss


AnyState = InnerState | TrackedState
State = TypeVar("State", bound=AnyState)


def start(
    loop: InnerLoop, theta: Theta, key: jax.Array, length: int | jax.Array
) -> InnerState:
    """Starts a run of `length` steps from freshly initialized parameters."""
    params = variation.init(loop.task, loop.variant, key)
    return InnerState(
        params,
        loop.optimizer(theta, length).init(params),
        jnp.zeros([], jnp.int32),
        jnp.asarray(length, jnp.int32),
    )


def inner_step(
    loop: InnerLoop,
    optimizer: optax.GradientTransformationExtraArgs,
    state: State,
    batch: Batch,
    key: jax.Array,
) -> tuple[State, jax.Array, dict[str, jax.Array]]:
    """Takes one step of training.

    Returns:
        The next state, the batch's loss `[]` *before* the update and without the
        variant's loss scale, auxiliary scalars.
    """

    def scaled_loss(params: Any) -> tuple[jax.Array, Any]:
        loss, aux = loop.loss(params, key, batch)
        scale = loop.variant.loss_scale
        return loss if scale is None else scale * loss, (loss, aux)

    (seen, (loss, aux)), grads = jax.value_and_grad(scaled_loss, has_aux=True)(
        state.params
    )
    updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params, loss=seen
    )
    params = optax.apply_updates(state.params, updates)
    state = state._replace(params=params, opt_state=opt_state, step=state.step + 1)
    return state, loss, aux
