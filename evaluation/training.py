"""Training runs of an evaluation.

A run is a function of (task, optimizer, θ, horizon, seed). The seed alone determines
the initial parameters and every batch, so runs of two optimizers are paired by seed.
The batch of step t does not depend on the horizon, because counter-based random bits of
a longer draw begin with those of a shorter one. All keys come from the purpose
"evaluation", so no run repeats a batch sequence of meta-training.

With the data on the device a run is one scan, vmapped from outside. With the training
rows on the host it is a loop over windows, each fetched while the one before it is
computed. Batches are planned for the whole run at once and so are the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopt.base import Theta
from lopt.baselines import evaluation_params
from metatrain.inner import InnerLoop, InnerState, start
from metatrain.keys import stream
from metatrain.streaming import HostDataset, ahead
from metatrain.unroll import Plan, Windowed, unroll
from tasks.base import Dataset, Params, Split

WINDOW_BYTES = 1 << 26
"""Approximate bound on the bytes of one window's rows, of all runs together."""


class Trained(NamedTuple):
    """A finished run."""

    state: InnerState
    losses: jax.Array  # [H] in the task's unit
    aux: dict[str, jax.Array]  # [H]
    key: jax.Array  # for whatever follows the run


def train(
    loop: InnerLoop,
    theta: Theta,
    seed: jax.Array,
    dataset: Dataset,
    num_steps: int,
    split: Split = "train",
) -> Trained:
    """Trains once on data that lies on the device; to be traced."""
    state, unroll_key, key = _begin(loop, num_steps, theta, seed)
    state, losses, aux = unroll(
        loop, theta, state, dataset, unroll_key, num_steps=num_steps, split=split
    )
    return Trained(state, losses, aux, key)


@functools.partial(jax.jit, static_argnums=(0, 2))
def train_model(
    loop: InnerLoop, theta: Theta, num_steps: int, key: jax.Array, dataset: Dataset
) -> tuple[Params, jax.Array]:
    """Trains once and returns the parameters to use, and the losses `[H]`."""
    state = start(loop, theta, stream(key, "init"), num_steps)
    state, losses, _ = unroll(
        loop, theta, state, dataset, stream(key, "unroll"), num_steps=num_steps
    )
    return evaluation_params(state.opt_state, state.params), losses


def train_streamed(
    loop: InnerLoop,
    theta: Theta,
    seeds: Sequence[int],
    dataset: HostDataset,
    num_steps: int,
    split: Split = "train",
    *,
    stacked: bool,
) -> Trained:
    """Trains once per seed on data whose training rows lie on the host.

    Args are those of `train`, but `theta` has `[R]` in front if `stacked`: then every
    run has a θ of its own. The result has `[R]` in front of everything.
    """
    state, keys, window, num = _planned(
        loop, theta, seeds, dataset, num_steps, split, stacked
    )
    parts = []
    for piece in ahead(window, num):
        state, *part = _advance(
            loop, split, stacked, theta, state, dataset.resident, piece
        )
        parts.append(part)
    losses, aux = jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *parts)
    return Trained(state, losses, aux, keys)


def compile_streamed(
    loop: InnerLoop,
    theta: Theta,
    seeds: Sequence[int],
    dataset: HostDataset,
    num_steps: int,
) -> Trained:
    """Compiles what `train_streamed` runs, so that its wall time can be measured.

    Runs the first window and the last, whose length may differ, from initial states.

    Returns:
        Something with the shapes of the finished runs, to compile what follows them.
    """
    for last in (False, True):
        # Each window gives away the memory of its state.
        state, keys, window, num = _planned(
            loop, theta, seeds, dataset, num_steps, "train", False
        )
        piece = window(num - 1 if last else 0)
        state, losses, _ = _advance(
            loop, "train", False, theta, state, dataset.resident, piece
        )
    return Trained(state, jnp.tile(losses[:, :1], (1, num_steps)), {}, keys)


def _planned(
    loop: InnerLoop,
    theta: Theta,
    seeds: Sequence[int],
    dataset: HostDataset,
    num_steps: int,
    split: Split,
    stacked: bool,
) -> tuple[InnerState, jax.Array, Callable[[int], Plan], int]:
    """Initial states, keys of what follows, and windows: by index, and how many."""
    task = loop.task
    state, unroll_keys, keys = _begin_all(
        loop, num_steps, stacked, theta, jnp.asarray(seeds, jnp.int32)
    )
    plan = dataset.plan(task, unroll_keys, num_steps, split)
    first = dataset.window(task, jax.tree.map(lambda x: x[:, :1], plan))
    step_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(first.rows))
    size = int(np.clip(WINDOW_BYTES // max(step_bytes, 1), 1, num_steps))

    def window(index: int) -> Plan:
        steps = slice(index * size, (index + 1) * size)
        return dataset.window(task, jax.tree.map(lambda x: x[:, steps], plan))

    return state, keys, window, math.ceil(num_steps / size)


def _begin(
    loop: InnerLoop, num_steps: int, theta: Theta, seed: jax.Array
) -> tuple[InnerState, jax.Array, jax.Array]:
    """Initial state, key of the unroll, key of whatever follows the run."""
    key = stream(jax.random.key(seed), "evaluation")
    state = start(loop, theta, stream(key, "init"), num_steps)
    return state, stream(key, "unroll"), key


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin_all(
    loop: InnerLoop, num_steps: int, stacked: bool, theta: Theta, seeds: jax.Array
) -> tuple[InnerState, jax.Array, jax.Array]:
    begin = functools.partial(_begin, loop, num_steps)
    return jax.vmap(begin, in_axes=(0 if stacked else None, 0))(theta, seeds)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _advance(
    loop: InnerLoop,
    split: Split,
    stacked: bool,
    theta: Theta,
    states: InnerState,
    resident: Dataset,
    plans: Plan,
) -> tuple[InnerState, jax.Array, dict[str, jax.Array]]:
    num_steps = plans.loss_keys.shape[1]

    def one(theta: Theta, state: InnerState, plan: Plan) -> Any:
        data = Windowed(resident, plan)
        return unroll(loop, theta, state, data, None, num_steps=num_steps, split=split)

    in_axes = (0 if stacked else None, 0, 0)
    return jax.vmap(one, in_axes=in_axes)(theta, states, plans)
