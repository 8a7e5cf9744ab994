"""Evaluation of optimizers: training runs, vmapped over seeds, and their figures.

`evaluation.training` says what a seed determines; this module measures the outcome.

Divergence is data. Every training loss that is averaged over steps is first capped as
in meta-training, at 1.5 × the loss at chance, NaN and infinity included. Curves and
held-out losses are kept as they were, and results say how many steps were capped and
which runs diverged.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configuration.fields import checked
from evaluation.cost import check_program
from evaluation.training import Trained, compile_streamed, train, train_streamed
from lopt.base import LearnedOptimizer, Theta, own_theta
from lopt.baselines import evaluation_params
from metatrain.inner import InnerLoop
from metatrain.keys import stream
from metatrain.objective import Objective
from metatrain.streaming import HostDataset
from tasks.base import Dataset, Split, Task, initial_loss

PIECE = 1000
"""Rows of a split whose loss is computed at once."""
FINAL_STEPS = 20
"""The final loss is the mean over this many last training batches."""

_OBJECTIVE = Objective()


class RunResult(NamedTuple):
    """Figures of R runs; numpy arrays, losses in the task's unit."""

    curve: np.ndarray  # [R, H] training-batch loss before each update
    mean_loss: np.ndarray  # [R] mean of the capped curve: the reported figure
    final_loss: np.ndarray  # [R] mean of the capped curve's last FINAL_STEPS
    valid_loss: np.ndarray  # [R] on the whole of outer_valid in the end, not capped
    valid_accuracy: np.ndarray  # [R] NaN if the task has no accuracy
    test_loss: np.ndarray  # [R] on the whole of test, not capped; never chosen by
    test_accuracy: np.ndarray  # [R]
    diverged: np.ndarray  # [R] bool: somewhere not finite, or capped at the end
    capped_steps: np.ndarray  # [R] int, steps whose loss counted as the cap
    seconds: np.ndarray  # [R] share of the wall time, without compilation


_identities: dict[Any, str] = {}


def renew(task: Task, about: str) -> None:
    """Forgets what is compiled if a task has another identity than before.

    Compiled programs keep what functions referred to, and settings, when they were
    traced. So results that are stored under an identity begin with this.
    """
    if _identities.setdefault(task, about) != about:
        _identities[task] = about
        _compile.cache_clear()
        initial_loss.cache_clear()
        jax.clear_caches()


def cap(losses: jax.Array, task: Task) -> jax.Array:
    """Caps losses at 1.5 × the loss at chance, NaN included."""
    chance = task.loss_at_chance
    return _OBJECTIVE.normalize(losses, chance) * chance


def evaluate(
    task: Task,
    lopt: LearnedOptimizer,
    theta: Theta,
    num_steps: int,
    seeds: Sequence[int],
    dataset: Dataset | HostDataset | None = None,
) -> RunResult:
    """Trains once per seed with one θ, in one vmapped program.

    Args:
        task: what is trained.
        lopt: the optimizer.
        theta: its meta-parameters.
        num_steps: inner steps (`H`).
        seeds: one run each (`R`).
        dataset: the task's data; None loads it.

    Raises:
        ValueError: if an argument is of a wrong type, or θ is of another optimizer.
    """
    num_steps = checked("num_steps", num_steps, int)
    theta = own_theta(checked("lopt", lopt, LearnedOptimizer), theta)
    dataset = task.load_data() if dataset is None else dataset
    loop = InnerLoop(task, lopt)
    if isinstance(dataset, HostDataset):
        _outcomes(
            task,
            dataset.resident,
            compile_streamed(loop, theta, seeds, dataset, num_steps),
        )
    return _execute(loop, theta, num_steps, seeds, dataset, stacked=False)


def evaluate_each(
    task: Task,
    lopt: LearnedOptimizer,
    thetas: Theta,
    num_steps: int,
    seeds: Sequence[int],
    dataset: Dataset | HostDataset | None = None,
) -> RunResult:
    """Trains once per pair of a θ and a seed.

    Runs go through one compiled program in chunks of a fixed size: longer lists compile
    nothing new, and a run's figures do not depend on the length of the list. Its
    seconds are its share of its chunk, in which runs that only fill it up count as
    others, and with compilation if rows are streamed. To compare optimizers, take the
    seconds of `evaluate`, which vmaps exactly the runs that are asked for.

    Args are those of `evaluate`, but `thetas` has `[R]` in front, a θ for each seed.
    """
    dataset = task.load_data() if dataset is None else dataset
    loop, size, num = InnerLoop(task, lopt), chunk_size(task), len(seeds)
    parts = []
    for begin in range(0, num, size):
        # The last run fills up the last chunk.
        rows = np.minimum(np.arange(begin, begin + size), num - 1)
        theta = jax.tree.map(lambda x, rows=rows: x[rows], thetas)
        here = [seeds[row] for row in rows]
        part = _execute(loop, theta, num_steps, here, dataset, stacked=True)
        used = min(size, num - begin)
        parts.append(jax.tree.map(lambda x, used=used: x[:used], part))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def chunk_size(task: Task) -> int:
    """Returns how many runs are vmapped together: many of small models, few of large.

    Small models are bound by the overhead of operations, so batching them pays until
    about 15. The parameters and optimizer state of large ones fill the cache of a CPU,
    and 3 (the tuning seeds) are fastest.
    """
    return max(3, min(15, 150_000 // num_parameters(task)))


def num_parameters(task: Task) -> int:
    """Counts the parameters of a task, without making them."""
    params = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def mean_loss(
    task: Task,
    lopt: LearnedOptimizer,
    theta: Theta,
    num_steps: int,
    seeds: Sequence[int],
    dataset: Dataset | HostDataset,
    split: Split = "outer_valid",
) -> tuple[jax.Array, jax.Array]:
    """Computes the figure by which meta-training chooses θ; compiled once.

    Args are those of `evaluate`, and the split of the held-out batches.

    Returns:
        Means `[]` over seeds and steps of normalized, capped losses: of a fresh batch
        of `split` after each update, and of the training batch before it.
    """
    if split == "train":
        raise ValueError("split = 'train' is not held out; the second value is that")
    loop = InnerLoop(task, lopt)
    if isinstance(dataset, HostDataset):
        trained = train_streamed(
            loop, theta, seeds, dataset, num_steps, split, stacked=False
        )
        return _mean_losses(task, trained.losses, trained.aux["train_loss"])
    return _mean_loss(loop, num_steps, split, theta, jnp.asarray(seeds), dataset)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _mean_loss(
    loop: InnerLoop,
    num_steps: int,
    split: Split,
    theta: Theta,
    seeds: jax.Array,
    dataset: Dataset,
) -> tuple[jax.Array, jax.Array]:
    def one(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        run = train(loop, theta, seed, dataset, num_steps, split)
        return run.losses, run.aux["train_loss"]

    return _mean_losses(loop.task, *jax.vmap(one)(seeds))


def _mean_losses(
    task: Task, held_out: jax.Array, training: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Means `[]` over seeds and steps of losses `[R, H]`, normalized and capped."""
    held_out, training = (
        jnp.mean(jnp.mean(_OBJECTIVE.normalize(losses, task.loss_at_chance), axis=1))
        for losses in (held_out, training)
    )
    return held_out, training


def _outcome(task: Task, dataset: Dataset, run: Trained) -> dict[str, jax.Array]:
    """Measures a finished run; fields of `RunResult` without `[R]` and `seconds`."""
    state, curve, _, key = run
    losses = cap(curve, task)
    at_cap = _OBJECTIVE.diverged(_OBJECTIVE.normalize(curve, task.loss_at_chance))
    finite = jnp.all(jnp.isfinite(curve))
    params = evaluation_params(state.opt_state, state.params)
    for leaf in jax.tree.leaves(params):
        finite &= jnp.all(jnp.isfinite(leaf))
    fields = {
        "curve": curve,
        "mean_loss": jnp.mean(losses),
        "final_loss": jnp.mean(losses[-FINAL_STEPS:]),
        "capped_steps": jnp.sum(at_cap),
    }
    splits: dict[str, Split] = {"valid": "outer_valid", "test": "test"}
    for name, split in splits.items():
        batch = task.whole(dataset, split)
        loss, aux = _loss_of_whole(task, params, stream(key, split), batch)
        fields[f"{name}_loss"] = loss
        fields[f"{name}_accuracy"] = jnp.asarray(aux.get("accuracy", jnp.nan))
        finite &= jnp.isfinite(loss)
    return fields | {"diverged": ~finite | at_cap[-1]}


def _loss_of_whole(
    task: Task, params: Any, key: jax.Array, batch: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and auxiliary values of a batch, piece by piece if it is large.

    Ten thousand images through a convolutional network, for several runs at once, do
    not fit into memory. A batch is cut only if all its arrays have as many rows.
    """
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(batch)}
    (rows,) = sizes.pop() if len(sizes) == 1 and () not in sizes else (0,)
    if rows <= PIECE:
        return task.loss(params, key, batch)
    whole = rows - rows % PIECE
    pieces = jax.tree.map(lambda x: x[:whole].reshape(-1, PIECE, *x.shape[1:]), batch)
    means = jax.lax.map(lambda piece: task.loss(params, key, piece), pieces)
    means = jax.tree.map(lambda x: jnp.mean(x, 0), means)
    if whole == rows:
        return means
    rest = task.loss(params, key, jax.tree.map(lambda x: x[whole:], batch))
    share = whole / rows
    return jax.tree.map(lambda a, b: share * a + (1.0 - share) * b, means, rest)


def _execute(
    loop: InnerLoop,
    theta: Theta,
    num_steps: int,
    seeds: Sequence[int],
    dataset: Dataset | HostDataset,
    *,
    stacked: bool,
) -> RunResult:
    if isinstance(dataset, HostDataset):

        def program() -> dict[str, jax.Array]:
            runs = train_streamed(
                loop, theta, seeds, dataset, num_steps, stacked=stacked
            )
            return _outcomes(loop.task, dataset.resident, runs._replace(aux={}))

    else:
        args = (theta, jnp.asarray(seeds, jnp.int32), dataset)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
        leaves, structure = jax.tree.flatten(shapes)
        compiled = _compile(loop, num_steps, stacked, structure, tuple(leaves))
        program = functools.partial(compiled, *args)
    begin = time.perf_counter()
    fields = jax.device_get(program())
    seconds = (time.perf_counter() - begin) / len(seeds)
    return RunResult(**fields, seconds=np.full(len(seeds), seconds))


@functools.partial(jax.jit, static_argnums=0)
def _outcomes(task: Task, resident: Dataset, runs: Trained) -> dict[str, jax.Array]:
    return jax.vmap(lambda run: _outcome(task, resident, run))(runs)


@functools.lru_cache(maxsize=64)
def _compile(
    loop: InnerLoop,
    num_steps: int,
    stacked: bool,
    structure: Any,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
) -> Any:
    """Compiles ahead of time, so that wall times exclude compilation."""

    def one(theta: Theta, seed: jax.Array, dataset: Dataset) -> dict[str, jax.Array]:
        run = train(loop, theta, seed, dataset, num_steps)
        return _outcome(loop.task, dataset, run)

    runs = jax.vmap(one, in_axes=(0 if stacked else None, 0, None))
    program = jax.jit(runs).lower(*structure.unflatten(leaves)).compile()
    check_program(
        program,
        f"{num_steps} steps of {type(loop.task).__name__}",
        "the task or its batches",
    )
    return program
