"""The inner loop's state and its step, the same for training and for evaluation."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from lopt.base import LearnedOptimizer, Theta
from lopt.per_parameter.precision import Precision
from tasks import variation
from tasks.base import Batch, Task
from tasks.variation import UNVARIED, Variant


def lowered(params: Any, precision: Precision) -> Any:
    """Parameters as the model is given them, which then computes in their precision.

    The parameters themselves stay in float32, where derivatives arrive.
    """
    if precision == "float32":
        return params
    return jax.tree.map(lambda x: x.astype(jnp.dtype(precision)), params)


class InnerState(NamedTuple):
    """One training run in progress; scalars unless vmapped."""

    params: Any
    opt_state: Any
    step: jax.Array  # [] int32, inner steps taken
    length: jax.Array  # [] int32, inner steps of the episode


class TrackedState(NamedTuple):
    """An `InnerState` that remembers its smallest loss.

    A class of its own, since even an empty field would change what a checkpoint of all
    other runs has to hold.
    """

    params: Any
    opt_state: Any
    step: jax.Array  # [] int32, inner steps taken
    length: jax.Array  # [] int32, inner steps of the episode
    minimum: jax.Array  # [] smallest normalized loss


AnyState = InnerState | TrackedState
State = TypeVar("State", bound=AnyState)


def start(
    task: Task,
    lopt: LearnedOptimizer,
    theta: Theta,
    key: jax.Array,
    length: int | jax.Array,
    variant: Variant = UNVARIED,
) -> InnerState:
    """A new run of `length` steps from freshly initialized parameters."""
    params = variation.init(task, variant, key)
    optimizer = lopt.as_optax(theta, task.specs(), length)
    return InnerState(
        params,
        optimizer.init(params),
        jnp.zeros([], jnp.int32),
        jnp.asarray(length, jnp.int32),
    )


def inner_step(
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    state: State,
    batch: Batch,
    key: jax.Array,
    variant: Variant = UNVARIED,
    precision: Precision = "float32",
) -> tuple[State, jax.Array, dict[str, jax.Array]]:
    """One step of training.

    Returns:
        The next state, the batch's loss `[]` *before* the update and without the
        variant's loss scale, auxiliary scalars.
    """

    def scaled_loss(params: Any) -> tuple[jax.Array, Any]:
        params = lowered(params, precision)
        loss, aux = variation.loss(task, variant, params, key, batch)
        scale = variant.loss_scale
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
