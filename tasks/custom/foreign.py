"""The methods of a task of google/learned_optimization, called by their names.

A `Task` there has `init(key)` or `init_with_state(key)`, and a loss in four forms, of
which the base class makes the missing ones from the poorer; a `TaskFamily` has
`sample(key)` and `task_fn(configuration)`. Keys are two words, as `jax.random.PRNGKey`
makes them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tasks.base import Batch, Params

_LOSSES = ("loss_with_state_and_aux", "loss_and_aux", "loss_with_state", "loss")


def name_of(original: Any) -> str:
    """The name that it gives itself, else that of its class."""
    name = getattr(original, "name", None)
    return name if isinstance(name, str) and name else type(original).__name__


def _has(original: Any, *methods: str) -> bool:
    return all(callable(getattr(original, method, None)) for method in methods)


def is_family(original: Any) -> bool:
    """Whether it makes tasks from configurations."""
    return _has(original, "sample", "task_fn")


def check_methods(original: Any, name: str) -> None:
    """Raises ValueError if it is neither a task nor a family of tasks."""
    if isinstance(original, type):
        raise ValueError(f"{original.__name__} is a class: adapt an object of it")
    starts = _has(original, "init") or _has(original, "init_with_state")
    losses = any(_has(original, method) for method in _LOSSES)
    if not (is_family(original) or (starts and losses)):
        raise ValueError(
            f"{name} is neither a task (init or init_with_state, and one of "
            f"{', '.join(_LOSSES)}) nor a family of tasks (sample and task_fn)"
        )


def task_of(original: Any, config: Any) -> Any:
    """The task itself, or the family's task of a configuration."""
    return original.task_fn(config) if is_family(original) else original


def start(task: Any, key: jax.Array, name: str) -> tuple[Params, Any]:
    """Initial parameters and model state, None if there is none.

    Raises:
        ValueError: if the task wanted a batch of its datasets, and they have ended.
    """
    raw = jax.random.key_data(key)
    try:
        if _has(task, "init_with_state"):
            return task.init_with_state(raw)
        return task.init(raw), None
    except StopIteration:
        # Some look at a batch of their own for its shape, whenever they are traced.
        raise ValueError(
            f"{name} takes a batch from its datasets to initialize, and they have "
            "ended: give iterators that go on"
        ) from None


def loss_without_state(
    task: Any, params: Params, state: Any, key: jax.Array, batch: Batch
) -> tuple[Any, Any]:
    """Loss and auxiliary values of a task whose model state cannot matter.

    Args:
        task: the foreign task.
        params: its parameters.
        state: shapes of its model state, for which zeros stand in.
        key: consumed.
        batch: a batch.
    """
    key = jax.random.key_data(key)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    return loss_in_state(task, params, state, key, batch)


def loss_in_state(
    task: Any, params: Params, state: Any, key: jax.Array, batch: Batch
) -> tuple[Any, Any]:
    """Loss and auxiliary values by the richest of a task's methods.

    The library's base class falls back from there to poorer ones, but not where there
    is a state; so a task that has one and does not say its auxiliary values has none.

    Args:
        task: the foreign task.
        params: its parameters.
        state: its model state, or None.
        key: two words; consumed.
        batch: a batch.
    """
    if _has(task, "loss_with_state_and_aux"):
        try:
            loss, _, aux = task.loss_with_state_and_aux(params, state, key, batch)
            return loss, aux
        except ValueError:
            if state is None or not _has(task, "loss_with_state"):
                raise
    if state is None and _has(task, "loss_and_aux"):
        return task.loss_and_aux(params, key, batch)
    if _has(task, "loss_with_state"):
        return task.loss_with_state(params, state, key, batch)[0], {}
    return task.loss(params, key, batch), {}
