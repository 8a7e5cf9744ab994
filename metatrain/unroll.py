"""Many inner steps as one `lax.scan`.

An unroll knows nothing of particles: it is vmapped from outside, over seeds in an
evaluation and over pairs of perturbed θ in meta-training.
"""

from __future__ import annotations

from typing import Any

import jax

from lopt.base import LearnedOptimizer, Theta
from metatrain.inner import InnerState, inner_step
from metatrain.keys import stream
from tasks.base import Dataset, Split, Task


def unroll(
    task: Task,
    lopt: LearnedOptimizer,
    theta: Theta,
    state: InnerState,
    dataset: Dataset,
    key: jax.Array,
    num_steps: int,
    split: Split = "train",
) -> tuple[InnerState, jax.Array, dict[str, jax.Array]]:
    """Trains for `num_steps` steps.

    All randomness of the batches is drawn before the loop and gathered inside it.

    Args:
        task: what is trained.
        lopt: the optimizer, a function of θ.
        theta: its meta-parameters.
        state: where training stands.
        dataset: the task's data.
        key: consumed; the same key means the same batches.
        num_steps: steps to take, static (`T`).
        split: "train" records the loss of each training batch before its update;
            another split records, after each update, the loss of a fresh batch of it.

    Returns:
        The state after the last step, losses `[T]` in nats, auxiliary scalars `[T]`;
        where the losses are of another split, `train_loss` is among the latter.
    """
    optimizer = lopt.as_optax(theta, task.specs(), state.length)
    draws = task.draw(dataset, stream(key, "batches"), "train", num_steps)
    loss_keys = jax.random.split(stream(key, "loss"), num_steps)
    held_out = split != "train"
    held_draws = (
        task.draw(dataset, stream(key, "held out"), split, num_steps)
        if held_out
        else None
    )

    def body(
        state: InnerState, xs: tuple[jax.Array, ...]
    ) -> tuple[InnerState, tuple[jax.Array, dict[str, jax.Array]]]:
        draw, loss_key, held_draw = xs
        batch = task.batch(dataset, draw, "train")
        state, loss, aux = inner_step(task, optimizer, state, batch, loss_key)
        if held_out:
            train_loss = loss
            batch = task.batch(dataset, held_draw, split)
            loss, aux = task.loss(state.params, stream(loss_key, "held out"), batch)
            aux = aux | {"train_loss": train_loss}
        return state, (loss, aux)

    xs: Any = (draws, loss_keys, held_draws)
    state, (losses, aux) = jax.lax.scan(body, state, xs)
    return state, losses, aux
