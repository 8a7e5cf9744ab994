"""Many inner steps as one `lax.scan`.

An unroll knows nothing of particles: it is vmapped from outside, over seeds in an
evaluation and over pairs of perturbed θ in meta-training.

All that is random about its steps is a `Plan`, a function of a key. Where the training
data lies on the host, an unroll is given a `Window` instead: the plan that the host has
made from the same key, and the rows of its batches. So its batches are the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from lopt.base import LearnedOptimizer, Theta
from lopt.baselines import evaluation_params
from lopt.per_parameter.precision import Precision
from metatrain.expert import GuidedState
from metatrain.inner import State, inner_step, lowered
from metatrain.keys import stream
from tasks import variation
from tasks.base import Dataset, Draws, Split, Streamable, Task
from tasks.variation import UNVARIED, Variant


class Plan(NamedTuple):
    """All that is random about a number of steps, `[T]` in front."""

    draws: Draws  # of the training batches
    loss_keys: jax.Array  # consumed by the losses
    held_draws: Draws | None  # of the batches of another split, if that is recorded


class Window(NamedTuple):
    """The training batches of some steps, fetched by the host."""

    rows: Any  # see `Streamable.fetch`
    plan: Plan


def make_plan(
    task: Task, dataset: Dataset, key: jax.Array, num_steps: int, split: Split = "train"
) -> Plan:
    """The plan of `unroll` with these arguments; of the data only sizes matter."""
    held_out = stream(key, "held out")
    return Plan(
        task.draw(dataset, stream(key, "batches"), "train", num_steps),
        jax.random.split(stream(key, "loss"), num_steps),
        None if split == "train" else task.draw(dataset, held_out, split, num_steps),
    )


def unroll(
    task: Task,
    lopt: LearnedOptimizer,
    theta: Theta,
    state: State,
    dataset: Dataset,
    key: jax.Array | None,
    num_steps: int,
    split: Split = "train",
    variant: Variant = UNVARIED,
    window: Window | None = None,
    remat: bool = False,
    precision: Precision = "float32",
) -> tuple[State, jax.Array, dict[str, jax.Array]]:
    """Trains for `num_steps` steps.

    All randomness of the batches is drawn before the loop and gathered inside it.

    Args:
        task: what is trained.
        lopt: the optimizer, a function of θ.
        theta: its meta-parameters.
        state: where training stands.
        dataset: the task's data.
        key: consumed; the same key means the same batches. Not used with a window.
        num_steps: steps to take, static (`T`).
        split: "train" records the loss of each training batch before its update;
            another split records, after each update, the loss of a fresh batch of it.
        variant: what is particular about this run of the task.
        window: plan and training batches, where the dataset does not hold these.
        remat: whether a derivative keeps the state before each step and computes all
            else anew, instead of keeping what the steps compute.
        precision: what the model computes in.

    Returns:
        The state after the last step, losses `[T]` in nats, auxiliary scalars `[T]`;
        where the losses are of another split, `train_loss` is among the latter, and
        `imitation` where an expert guides the optimizer.
    """
    optimizer = lopt.as_optax(theta, task.specs(), state.length)
    if window is None:
        assert key is not None
        plan = make_plan(task, dataset, key, num_steps, split)
    else:
        assert isinstance(task, Streamable)
        plan, dataset = window.plan, task.with_rows(dataset, window.rows)
    plan = plan._replace(draws=variation.thin(task, variant, plan.draws))
    held_out = split != "train"

    def body(
        state: State, xs: Plan
    ) -> tuple[State, tuple[jax.Array, dict[str, jax.Array]]]:
        draw, loss_key, held_draw = xs
        batch = task.batch(dataset, draw, "train")
        batch = variation.relabel(task, variant, batch, draw)
        state, loss, aux = inner_step(
            task, optimizer, state, batch, loss_key, variant, precision
        )
        if held_out:
            train_loss = loss
            batch = task.batch(dataset, held_draw, split)
            held_key = stream(loss_key, "held out")
            params = evaluation_params(state.opt_state, state.params)
            params = lowered(params, precision)
            loss, aux = variation.loss(task, variant, params, held_key, batch)
            aux = aux | {"train_loss": train_loss}
        if isinstance(state.opt_state, GuidedState):
            aux = aux | {"imitation": state.opt_state.imitation}
        return state, (loss, aux)

    if remat:
        body = jax.checkpoint(body, prevent_cse=False)  # a scan prevents it anyway
    state, (losses, aux) = jax.lax.scan(body, state, plan, length=num_steps)
    return state, losses, aux
