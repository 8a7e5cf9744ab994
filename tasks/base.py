"""The interface of a task, which an inner loop optimizes.

A task is a frozen, hashable description, static under `jit`. Its dataset is a pytree of
device arrays that is passed as an argument, and a batch is a function of a key. Drawing
the randomness of batches (`draw`) is separate from fetching them (`batch`), so an
unroll draws for a whole window at once and gathers inside its loop.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, Self, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from configuration import identity
from configuration.modules import is_installed
from parametrization.rules import ReadoutInit, Rules
from tasks.source import Source, tree_bytes

Params: TypeAlias = Any
Dataset: TypeAlias = Any
Batch: TypeAlias = Any
Draws: TypeAlias = Any
Loss: TypeAlias = tuple[jax.Array, dict[str, jax.Array]]
"""The mean over a batch `[]`, and named auxiliary scalars."""
Split = Literal["train", "inner_valid", "outer_valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "inner_valid", "outer_valid", "test")

NUM_KEYS = 64
"""Initializations over which a loss at chance is averaged."""

UNIT = "units of the task"
"""Unit of a loss of which nothing is known."""


class Task(Protocol):
    """One optimization problem of static shape.

    Members with a body have that default in classes that derive from `BaseTask`: a task
    without a model, in which nothing scales. In shapes, `B` is the batch size.
    """

    unit: str = UNIT
    """Unit of the loss: "nats" only of a negative log-likelihood."""

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Returns initial parameters: a tree of plain arrays."""

    @abc.abstractmethod
    def specs(self) -> Any:
        """Returns a tree of `ParamSpec` with the structure of the parameters."""

    @abc.abstractmethod
    def load_data(self) -> Dataset:
        """Returns the dataset: a pytree of arrays, all four splits inside."""

    @abc.abstractmethod
    def draw(self, dataset: Dataset, key: jax.Array, split: Split, num: int) -> Draws:
        """Draws the randomness of `num` batches: a pytree with `[num]` in front."""

    @abc.abstractmethod
    def batch(self, dataset: Dataset, draw: Draws, split: Split) -> Batch:
        """Returns the batch of one draw."""

    @abc.abstractmethod
    def whole(self, dataset: Dataset, split: Split) -> Batch:
        """Returns a whole split as one batch, for final evaluations."""

    @abc.abstractmethod
    def loss(self, params: Params, key: jax.Array, batch: Batch) -> Loss:
        """Returns the mean loss over the batch `[]`, in `unit`, and named scalars."""

    def activations(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """Returns the outputs of every layer by name, for coordinate checks."""
        del params, key, batch
        return {}

    @property
    def loss_at_chance(self) -> float:
        """The loss without any knowledge: the unit of the normalized loss.

        By default the loss at initialization, averaged over 64 keys.
        """
        return initial_loss(self)

    @property
    def width(self) -> int | None:
        """Width of the model; None if there is none."""
        return None

    @property
    def depth(self) -> int | None:
        """Depth of the model; None if there is none."""
        return None

    def at_width(self, width: int) -> Self:
        """Returns the same task with a model of another width."""
        raise ValueError(f"{_title(self)} has no width to set to {width}")

    def at_depth(self, depth: int) -> Self:
        """Returns the same task with a model of another depth."""
        raise ValueError(f"{_title(self)} has no depth to set to {depth}")

    def with_rules(self, rules: Rules) -> Self:
        """Returns the same task in another parametrization."""
        del rules
        return self

    def with_readout_init(self, readout_init: ReadoutInit) -> Self:
        """Returns the same task with other initial readouts; itself without a model."""
        del readout_init
        return self

    @property
    def family(self) -> str:
        """Class of the model, or of the task if it has none."""
        return type(self).__name__

    @property
    def source(self) -> Source | None:
        """Source of the data; None if the task makes its own."""
        data = getattr(self, "data", None)
        return data if isinstance(data, Source) else None

    @property
    def data_name(self) -> str:
        """Name of the data in tables."""
        data = getattr(self, "data", None)
        if data is None:
            return "none"
        return data.label if isinstance(data, Source) else type(data).__name__

    @property
    def resolution(self) -> str:
        """Size of one input.

        Raises:
            ValueError: in one line, if only a disk knows it and the data is missing.
        """
        return "–"

    def batch_shapes(self) -> Batch:
        """Returns one training batch as `ShapeDtypeStruct`.

        By default `load_data` is traced, which suits data that is made of few numbers;
        a task that reads data says the shapes itself.

        Raises:
            ValueError: in one line, if only a disk knows them and the data is missing.
        """
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(lambda key: sample(self, self.load_data(), key), key)

    def dataset_bytes(self) -> int | None:
        """Returns the bytes of the data on the device.

        None if the data is missing, or only reading all of it would tell.
        """
        try:
            if self.source is not None:
                return self.source.num_bytes()
            return tree_bytes(self.load_data())
        except ValueError:
            return None


class BaseTask(Task):
    """Base class of tasks that configurations can hold.

    Subclasses are frozen dataclasses that implement `Task`. Configurations check for
    this class because the protocol, which data properties are part of, has no
    `isinstance`.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def identified_by(self) -> Mapping[str, Any]:
        """Returns the fields; of tasks from outside also the arrays that they load."""
        fields = identity.own_fields(self)
        if self.source is None and not is_installed(type(self).__module__):
            return fields | {"loaded": identity.of_arrays(self.load_data())}
        return fields


@runtime_checkable
class RowBatches(Protocol):
    """A task whose batches are rows of data, so that fewer can be taken of each."""

    batch_size: int

    def thin(self, draws: Draws, rows: jax.Array) -> Draws:
        """Returns draws whose batches repeat their first `rows` rows to full size.

        Args:
            draws: of any number of batches `[num]`.
            rows: `[]` int32, divides the batch size.
        """
        ...


@runtime_checkable
class Streamable(Protocol):
    """A task whose training rows can stay on the host, a window of them at a time."""

    def resident(self, dataset: Dataset) -> Dataset:
        """Returns the part of a dataset that always lies on the device."""
        ...

    def fetch(self, dataset: Dataset, draws: Draws) -> tuple[Any, Draws]:
        """Gathers the training rows of some draws, in their order, as NumPy arrays.

        Args:
            dataset: all of it, on the host.
            draws: with any axes in front of `[num]`, which the results have too.

        Returns:
            The rows, and the draws by which `batch` finds them among these.
        """
        ...

    def with_rows(self, resident: Dataset, rows: Any) -> Dataset:
        """Returns a dataset whose training rows are those fetched, for one unroll."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A task whose examples have labels, which can be wrong."""

    def relabel(
        self, batch: Batch, draw: Draws, share: jax.Array, seed: jax.Array
    ) -> Batch:
        """Returns the batch of a draw with a share `[]` of wrong labels.

        Which labels are wrong, and what replaces them, follows from the example and the
        seed `[]` uint32 alone.
        """
        ...


@runtime_checkable
class Parametric(Protocol):
    """A task that draws traced numbers of its own, once for a whole run."""

    def sample_config(self, key: jax.Array) -> Any:
        """Draws a pytree of arrays; None if this task has nothing to draw."""
        ...

    def loss_at_chance_over_configs(self) -> float:
        """Returns `Task.loss_at_chance` where each run has numbers of its own."""
        ...

    def init_with(self, config: Any, key: jax.Array) -> Params:
        """Returns initial parameters under these numbers."""
        ...

    def loss_with(
        self, config: Any, params: Params, key: jax.Array, batch: Batch
    ) -> Loss:
        """Returns the mean loss `[]` under these numbers, and auxiliary scalars."""
        ...


def check_task(task: Any) -> None:
    """Raises ValueError if this is not a task, or the class of one."""
    methods = ("init", "specs", "load_data", "draw", "batch", "loss")
    lacking = [name for name in methods if not callable(getattr(task, name, None))]
    if lacking:
        raise ValueError(f"task = {task!r} is no task: it has no {', '.join(lacking)}")
    if isinstance(task, type):
        raise ValueError(f"task = {task!r} is a class: it must be an instance")


def check_seed(seed: int) -> None:
    """Raises ValueError unless this is a seed of NumPy's generators."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed = {seed!r} must be a whole number in [0, 2³²)")


def sample(
    task: Task, dataset: Dataset, key: jax.Array, split: Split = "train"
) -> Batch:
    """Returns one batch as a function of a key: `draw` and `batch` in one."""
    draws = task.draw(dataset, key, split, 1)
    return task.batch(dataset, jax.tree.map(lambda x: x[0], draws), split)


def batch_keys(key: jax.Array, split: Split, num: int) -> jax.Array:
    """Returns the keys of `num` batches `[num]`, different ones for each split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    return jax.random.split(jax.random.fold_in(key, SPLITS.index(split)), num)


def repeat_rows(draws: Draws, batch_size: int, rows: jax.Array) -> Draws:
    """Implements `RowBatches.thin` for arrays `[num, batch_size, ...]`."""
    places = jnp.arange(batch_size) % rows
    return jax.tree.map(lambda x: x[:, places], draws)


@functools.cache
def initial_loss(task: Task) -> float:
    """Returns the loss of a training batch at initialization, averaged over 64 keys.

    Computed once per task; also where a caller is being traced.
    """

    def one(dataset: Dataset, key: jax.Array) -> jax.Array:
        start, batch, loss = jax.random.split(key, 3)
        return task.loss(task.init(start), loss, sample(task, dataset, batch))[0]

    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), NUM_KEYS)
        # One after the other, so that this needs no more memory than a step does.
        losses = jax.jit(lambda data: jax.lax.map(lambda key: one(data, key), keys))(
            task.load_data()
        )
        return float(np.asarray(losses, np.float64).mean())


def shaped(*shape: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Any:
    """Returns a `ShapeDtypeStruct`, typed so that it can stand in a batch."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _title(task: Task) -> str:
    return getattr(task, "name", type(task).__name__)
