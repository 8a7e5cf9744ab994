"""The interface of a task: what an inner loop optimizes.

A task is a frozen, hashable description, static under `jit`. Its data is not part of it
but a pytree of device arrays that travels as an argument, and a batch is a function of
a key. What is random about a batch (`draw`) is separated from fetching it (`batch`), so
an unroll draws for a whole window at once and gathers inside its loop.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self, TypeAlias

import jax

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


def sample(
    task: Task, dataset: Dataset, key: jax.Array, split: Split = "train"
) -> Batch:
    """One batch as a function of a key: `draw` and `batch` in one."""
    draws = task.draw(dataset, key, split, 1)
    return task.batch(dataset, jax.tree.map(lambda x: x[0], draws), split)
