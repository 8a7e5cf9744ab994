"""Many inner steps as one `lax.scan`.

`unroll` trains one run; callers vmap it, over seeds in an evaluation and over members
of antithetic pairs in meta-training. Everything random about its steps is a `Plan`, a
function of a key. Where the training rows stay on the host, the host makes the same
plan, fetches its rows, and passes both as `Windowed` data: the batches are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lopt.base import Theta
from lopt.baselines import evaluation_params
from metatrain.inner import InnerLoop, State, inner_step
from metatrain.keys import stream
from tasks import variation
from tasks.base import Dataset, Draws, Split, Streamable, Task

Scalars = dict[str, jax.Array]


class Plan(NamedTuple):
    """Everything random about `T` steps, `[T]` in front of all but `rows`."""

    draws: Draws  # of the training batches
    loss_keys: jax.Array  # consumed by the losses
    held_draws: Draws | None  # batches of another split, if it is recorded
    rows: Any = None  # training rows that the host fetched (`Streamable.fetch`)


class Windowed(NamedTuple):
    """Data whose training rows are only those of the next window."""

    resident: Dataset
    plan: Plan  # with `rows`; an estimator's has `[N]` in front, one for each particle


def make_plan(
    task: Task, dataset: Dataset, key: jax.Array, num_steps: int, split: Split = "train"
) -> Plan:
    """Makes the plan of `unroll` with these arguments, from the dataset's sizes."""
    held_out = stream(key, "held out")
    return Plan(
        task.draw(dataset, stream(key, "batches"), "train", num_steps),
        jax.random.split(stream(key, "loss"), num_steps),
        None if split == "train" else task.draw(dataset, held_out, split, num_steps),
    )


def unroll(
    loop: InnerLoop,
    theta: Theta,
    state: State,
    dataset: Dataset | Windowed,
    key: jax.Array | None,
    *,
    num_steps: int,
    split: Split = "train",
    remat: bool = False,
    record: Callable[[State], Scalars] | None = None,
) -> tuple[State, jax.Array, Scalars]:
    """Trains for `num_steps` steps.

    The batches are drawn before the loop and gathered inside it.

    Args:
        loop: task and optimizer.
        theta: the optimizer's meta-parameters.
        state: where training stands.
        dataset: the task's data, all of it or a window.
        key: consumed; the same key means the same batches. `Windowed` data has a plan
            already and needs none.
        num_steps: steps to take, static (`T`).
        split: "train" records the loss of each training batch before its update;
            another split records, after each update, the loss of a fresh batch of it.
        remat: whether a derivative keeps only the state before each step and recomputes
            the rest.
        record: further scalars of the state after each step.

    Returns:
        The state after the last step, losses `[T]`, auxiliary scalars `[T]`;
        with the losses of another split, `train_loss` is among the scalars.
    """
    task, variant = loop.task, loop.variant
    optimizer = loop.optimizer(theta, state.length)
    if isinstance(dataset, Windowed):
        assert isinstance(task, Streamable)
        dataset, plan = dataset
        dataset = task.with_rows(dataset, plan.rows)
    else:
        assert key is not None
        plan = make_plan(task, dataset, key, num_steps, split)
    plan = plan._replace(draws=variation.thin(task, variant, plan.draws), rows=None)

    def body(state: State, xs: Plan) -> tuple[State, tuple[jax.Array, Scalars]]:
        batch = task.batch(dataset, xs.draws, "train")
        batch = variation.relabel(task, variant, batch, xs.draws)
        state, loss, aux = inner_step(loop, optimizer, state, batch, xs.loss_keys)
        if split != "train":
            train_loss = loss
            batch = task.batch(dataset, xs.held_draws, split)
            held_key = stream(xs.loss_keys, "held out")
            params = evaluation_params(state.opt_state, state.params)
            loss, aux = loop.loss(params, held_key, batch)
            aux = aux | {"train_loss": train_loss}
        if record is not None:
            aux = aux | record(state)
        return state, (loss, aux)

    if remat:
        # A scan prevents common-subexpression elimination anyway.
        body = jax.checkpoint(body, prevent_cse=False)
    state, (losses, aux) = jax.lax.scan(body, state, plan, length=num_steps)
    return state, losses, aux
