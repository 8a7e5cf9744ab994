"""Data that does not fit on the device: windows of batches, fetched by the host.

The key of a window determines its rows, so the host makes the same draws as the device
would, gathers the rows from its own memory, and sends them ahead: while the device
computes one window, a thread fetches the next. Two windows of training rows lie on the
device at a time, and all of the smaller splits.

Datasets are loaded on JAX's CPU backend here, that is into the host's memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp

from metatrain import devices
from metatrain.outer import MetaTraining
from metatrain.unroll import Plan, Windowed, make_plan
from tasks.base import Dataset, Split, Streamable, Task

T = TypeVar("T")


class HostDataset:
    """A dataset whose training rows stay on the host."""

    def __init__(self, task: Task) -> None:
        """Loads the task's data.

        Raises:
            ValueError: if the rows of this task cannot be streamed.
        """
        if not isinstance(task, Streamable):
            raise ValueError(
                f"a {type(task).__name__} has no rows of data that could be streamed"
            )
        with _on_host():
            self.whole = task.load_data()
        self.resident = jax.device_put(task.resident(self.whole))

    def plan(
        self, task: Task, keys: jax.Array, num_steps: int, split: Split = "train"
    ) -> Plan:
        """Makes plans of unrolls with these keys `[N]`, `[N, T]` in front."""
        with _on_host():
            return _plans(task, self.whole, keys, num_steps, split)

    def fetch(self, task: Task, plan: Plan) -> Plan:
        """Returns a plan, with any axes before `[T]`, and its rows, on the host."""
        assert isinstance(task, Streamable)
        rows, draws = task.fetch(self.whole, plan.draws)
        return plan._replace(draws=draws, rows=rows)

    def window(self, task: Task, plan: Plan) -> Plan:
        """Fetches the rows of a plan and sends both to the device (see `fetch`)."""
        return jax.device_put(self.fetch(task, plan))


def load(task: Task, *, stream: bool) -> Dataset | HostDataset:
    """Loads a task's data, its training rows on the host if wanted and possible."""
    if stream and isinstance(task, Streamable):
        return HostDataset(task)
    return task.load_data()


def ahead(make: Callable[[int], T], num: int) -> Iterator[T]:
    """Yields `make(0)` … `make(num - 1)`, each begun when the one before is yielded."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(make, 0) if num else None
        for index in range(num):
            assert pending is not None
            done, pending = pending, None
            result = done.result()
            if index + 1 < num:
                pending = pool.submit(make, index + 1)
            yield result


class Feed:
    """The datasets of each outer step of a run, placed for its devices.

    A context, which ends the fetching thread. Each process fetches the windows of its
    own particles.
    """

    def __init__(
        self,
        training: MetaTraining,
        tasks: Sequence[Task],
        datasets: Sequence[Dataset | HostDataset],
    ) -> None:
        """Prepares the feed of a run, given the tasks and datasets of its groups."""
        self._training, self._tasks, self._datasets = training, tasks, datasets
        self._placed = [
            devices.replicate(
                data.resident if isinstance(data, HostDataset) else data, training.mesh
            )
            for data in datasets
        ]
        self._streams = any(isinstance(data, HostDataset) for data in datasets)
        self._pool = ThreadPoolExecutor(1)
        self._pending: dict[int, Future[dict[int, Any]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def at(self, step: int) -> dict[int, Dataset | Windowed]:
        """Returns the datasets of the outer step after `step` others."""
        if not self._streams:
            return self._make(step)
        pending = self._pending.pop(step, None) or self._pool.submit(self._make, step)
        if step + 1 < self._training.num_steps:
            self._pending = {step + 1: self._pool.submit(self._make, step + 1)}
        return pending.result()

    def _make(self, step: int) -> dict[int, Dataset | Windowed]:
        return {
            index: self._of_group(index, step)
            for index in self._training.groups_at(step)
        }

    def _of_group(self, index: int, step: int) -> Dataset | Windowed:
        data, task = self._datasets[index], self._tasks[index]
        if not isinstance(data, HostDataset):
            return self._placed[index]
        problem = self._training.groups[index].problem
        estimator = self._training.estimator
        with _on_host():
            keys = _data_keys(self._training, index, jnp.asarray(step))
            own = devices.own_part(keys.shape[0], self._training.mesh)
            keys = keys[own.start : own.stop]
        plan = data.plan(task, keys, estimator.truncation, problem.objective.split)
        plan = devices.shard_own(data.fetch(task, plan), self._training.mesh)
        return Windowed(self._placed[index], plan)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _plans(
    task: Task, dataset: Dataset, keys: jax.Array, num_steps: int, split: Split
) -> Plan:
    return jax.vmap(lambda key: make_plan(task, dataset, key, num_steps, split))(keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _data_keys(training: MetaTraining, index: int, step: jax.Array) -> jax.Array:
    return training.estimator.data_keys(training.group_key(index, step))


def _on_host() -> Any:
    """Computes on the CPU backend, so that results lie in the host's memory."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])
