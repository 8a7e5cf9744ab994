"""A training run of an evaluation: what its seed determines, how it is carried out.

A run is a function of (task, optimizer, θ, horizon, seed). The seed alone determines
the initial parameters and every batch, whatever the optimizer, so runs of two
optimizers are paired by seed; and the batch of step t does not depend on the horizon,
because counter-based random bits of a longer draw begin with those of a shorter one.
The keys come from the purpose "evaluation", so no run repeats a batch sequence of
meta-training.

With the data on the device a run is one scan, vmapped from outside. With the training
rows on the host it is a loop over windows, each of which is fetched while the one
before it is computed; plans are made for the whole run at once, so batches are the same
bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopt.base import LearnedOptimizer, Theta
from metatrain.inner import InnerLoop, InnerState, start
from metatrain.keys import stream
from metatrain.streaming import HostDataset, ahead
from metatrain.unroll import Plan, Windowed, unroll
from tasks.base import Dataset, Split, Task

WINDOW_BYTES = 1 << 26
"""Rows of one window of a run whose data is streamed, at most about so many bytes."""


class Trained(NamedTuple):
    """A run that is over."""

    state: InnerState
    losses: jax.Array  # [H] in nats
    aux: dict[str, jax.Array]  # [H]
    key: jax.Array  # for what follows the run


def train(
    task: Task,
    lopt: LearnedOptimizer,
    theta: Theta,
    seed: jax.Array,
    dataset: Dataset,
    num_steps: int,
    split: Split = "train",
) -> Trained:
    """One run on data that lies on the device; to be traced."""
    state, unroll_key, key = _begin(task, lopt, num_steps, theta, seed)
    state, losses, aux = unroll(
        InnerLoop(task, lopt),
        theta,
        state,
        dataset,
        unroll_key,
        num_steps=num_steps,
        split=split,
    )
    return Trained(state, losses, aux, key)


def train_streamed(
    task: Task,
    lopt: LearnedOptimizer,
    theta: Theta,
    seeds: Sequence[int],
    dataset: HostDataset,
    num_steps: int,
    split: Split = "train",
    *,
    stacked: bool,
) -> Trained:
    """Runs on data whose training rows lie on the host, `[R]` in front of everything.

    Args:
        task: what is trained.
        lopt: the optimizer.
        theta: its meta-parameters, `[R]` in front if `stacked`.
        seeds: one run each (`R`).
        dataset: the task's data.
        num_steps: inner steps (`H`).
        split: see `unroll`.
        stacked: whether every run has a θ of its own.
    """
    state, unroll_keys, keys = _begin_all(
        task, lopt, num_steps, stacked, theta, jnp.asarray(seeds, jnp.int32)
    )
    plan = dataset.plan(task, unroll_keys, num_steps, split)
    size = _window_size(dataset, task, plan, num_steps)

    def window(index: int) -> Plan:
        steps = slice(index * size, (index + 1) * size)
        return dataset.window(task, jax.tree.map(lambda x: x[:, steps], plan))

    parts = []
    for piece in ahead(window, math.ceil(num_steps / size)):
        state, *part = _advance(
            task, lopt, split, stacked, theta, state, dataset.resident, piece
        )
        parts.append(part)
    losses, aux = jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *parts)
    return Trained(state, losses, aux, keys)


def _begin(
    task: Task,
    lopt: LearnedOptimizer,
    num_steps: int,
    theta: Theta,
    seed: jax.Array,
) -> tuple[InnerState, jax.Array, jax.Array]:
    """The start of a run, the key of its unroll, and the key of what follows it."""
    key = stream(jax.random.key(seed), "evaluation")
    state = start(InnerLoop(task, lopt), theta, stream(key, "init"), num_steps)
    return state, stream(key, "unroll"), key


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _begin_all(
    task: Task,
    lopt: LearnedOptimizer,
    num_steps: int,
    stacked: bool,
    theta: Theta,
    seeds: jax.Array,
) -> tuple[InnerState, jax.Array, jax.Array]:
    begin = functools.partial(_begin, task, lopt, num_steps)
    return jax.vmap(begin, in_axes=(0 if stacked else None, 0))(theta, seeds)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def _advance(
    task: Task,
    lopt: LearnedOptimizer,
    split: Split,
    stacked: bool,
    theta: Theta,
    states: InnerState,
    resident: Dataset,
    plans: Plan,
) -> tuple[InnerState, jax.Array, dict[str, jax.Array]]:
    loop, num_steps = InnerLoop(task, lopt), plans.loss_keys.shape[1]

    def one(theta: Theta, state: InnerState, plan: Plan) -> Any:
        dataset = Windowed(resident, plan)
        return unroll(
            loop, theta, state, dataset, None, num_steps=num_steps, split=split
        )

    in_axes = (0 if stacked else None, 0, 0)
    return jax.vmap(one, in_axes=in_axes)(theta, states, plans)


def _window_size(dataset: HostDataset, task: Task, plan: Any, num_steps: int) -> int:
    """Steps of a window."""
    first = dataset.window(task, jax.tree.map(lambda x: x[:, :1], plan))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(first.rows))
    return int(np.clip(WINDOW_BYTES // max(size, 1), 1, num_steps))
