"""The interface of a task: what an inner loop optimizes.

A task is a frozen, hashable description, static under `jit`. Its data is not part of it
but a pytree of device arrays that travels as an argument, and a batch is a function of
a key. What is random about a batch (`draw`) is separated from fetching it (`batch`), so
an unroll draws for a whole window at once and gathers inside its loop.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from parametrization.rules import Rules

Params: TypeAlias = Any
Dataset: TypeAlias = Any
Batch: TypeAlias = Any
Draws: TypeAlias = Any
Split = Literal["train", "inner_valid", "outer_valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "inner_valid", "outer_valid", "test")


class Task(Protocol):
    """One optimization problem of static shape.

    In shapes, `B` is the batch and `T` a number of inner steps.
    """

    @property
    def loss_at_chance(self) -> float:
        """The loss that knows nothing, in nats: the unit of the normalized loss."""
        ...

    @property
    def width(self) -> int | None:
        """Width of the model; None declares that the task has no width to grow."""
        ...

    @property
    def depth(self) -> int | None:
        """Depth of the model; None declares that the task has none."""
        ...

    def at_width(self, width: int) -> Self:
        """The same task, its model of another width."""
        ...

    def at_depth(self, depth: int) -> Self:
        """The same task, its model of another depth."""
        ...

    def with_rules(self, rules: Rules) -> Self:
        """The same task, its model in another parametrization."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Initial parameters: a tree of plain arrays."""
        ...

    def specs(self) -> Any:
        """A tree of `ParamSpec` with the structure of the parameters."""
        ...

    def load_data(self) -> Dataset:
        """The dataset: a pytree of arrays, all four splits inside."""
        ...

    def draw(self, dataset: Dataset, key: jax.Array, split: Split, num: int) -> Draws:
        """The randomness of `num` batches: a pytree with `[num]` in front."""
        ...

    def batch(self, dataset: Dataset, draw: Draws, split: Split) -> Batch:
        """The batch that one draw names."""
        ...

    def whole(self, dataset: Dataset, split: Split) -> Batch:
        """The whole of a split as one batch, for final evaluations."""
        ...

    def loss(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean loss over the batch `[]` in nats, and named auxiliary scalars."""
        ...

    def activations(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """What every layer computes for the batch, by name, for coordinate checks."""
        ...


@runtime_checkable
class RowBatches(Protocol):
    """A task whose batches are rows of data, so that fewer can be taken of each."""

    batch_size: int

    def thin(self, draws: Draws, rows: jax.Array) -> Draws:
        """Draws of batches that repeat their first `rows` `[]` rows to their full size.

        Args:
            draws: of any number of batches `[num]`.
            rows: int32, divides the batch size.
        """
        ...


def check_task(task: Any) -> None:
    """Raises ValueError if this is no task, or the class of one."""
    methods = ("init", "specs", "load_data", "draw", "batch", "loss")
    lacking = [name for name in methods if not callable(getattr(task, name, None))]
    if lacking:
        raise ValueError(f"task = {task!r} is no task: it has no {', '.join(lacking)}")
    if isinstance(task, type):
        raise ValueError(f"task = {task!r} is a class: it must be an instance")


def repeat_rows(draws: Draws, batch_size: int, rows: jax.Array) -> Draws:
    """`RowBatches.thin` of draws that are arrays `[num, batch_size, ...]`."""
    places = jnp.arange(batch_size) % rows
    return jax.tree.map(lambda x: x[:, places], draws)


@runtime_checkable
class Streamable(Protocol):
    """A task whose training rows can stay on the host, a window of them at a time."""

    def resident(self, dataset: Dataset) -> Dataset:
        """What of a dataset always lies on the device: all but the training rows."""
        ...

    def fetch(self, dataset: Dataset, draws: Draws) -> tuple[Any, Draws]:
        """The training rows that draws name, in their order, as NumPy arrays.

        Args:
            dataset: the whole of it, on the host.
            draws: with any axes in front of `[num]`, which the results have too.

        Returns:
            The rows, and the draws by which `batch` finds them among these.
        """
        ...

    def with_rows(self, resident: Dataset, rows: Any) -> Dataset:
        """A dataset whose training rows are those fetched, for one unroll."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A task whose examples have labels, which can be wrong."""

    def relabel(
        self, batch: Batch, draw: Draws, share: jax.Array, seed: jax.Array
    ) -> Batch:
        """The batch of a draw with a share `[]` of wrong labels.

        Which examples are concerned, and what their labels are instead, follows from
        the example and the seed `[]` uint32 alone.
        """
        ...


@runtime_checkable
class Parametric(Protocol):
    """A task that draws traced numbers of its own, once for a whole run."""

    def sample_config(self, key: jax.Array) -> Any:
        """A pytree of arrays; None of a task that draws nothing after all."""
        ...

    def loss_at_chance_over_configs(self) -> float:
        """`Task.loss_at_chance` where each run has numbers of its own."""
        ...

    def init_with(self, config: Any, key: jax.Array) -> Params:
        """Initial parameters under these numbers."""
        ...

    def loss_with(
        self, config: Any, params: Params, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean loss `[]` under these numbers, and auxiliary scalars."""
        ...


def sample(
    task: Task, dataset: Dataset, key: jax.Array, split: Split = "train"
) -> Batch:
    """One batch as a function of a key: `draw` and `batch` in one."""
    draws = task.draw(dataset, key, split, 1)
    return task.batch(dataset, jax.tree.map(lambda x: x[0], draws), split)
