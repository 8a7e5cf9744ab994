"""What tasks share that are made from a few numbers, without model or without data.

A landscape is a loss of a position x, `{"x": [D]}`, its only parameter. No axis of it
scales, so every parametrization is the same, and there is no width and no depth. A run
starts where a key says, each coordinate drawn from N(0, 1); the landscape itself is
fixed by the task's fields and travels as the dataset.
"""

from __future__ import annotations

import abc
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from parametrization.axes import Axes
from parametrization.rules import Rules
from parametrization.spec import ParamSpec
from tasks.base import SPLITS, Batch, Dataset, Draws, Params, Split, Task, sample

NUM_KEYS = 64
"""Initializations over which the loss at chance is averaged."""


@functools.cache
def initial_loss(task: Task) -> float:
    """The loss of a training batch at initialization, averaged over 64 keys.

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


def batch_keys(key: jax.Array, split: Split, num: int) -> jax.Array:
    """Keys of `num` batches `[num]`, of each split others."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    return jax.random.split(jax.random.fold_in(key, SPLITS.index(split)), num)


def check_seed(seed: int) -> None:
    """Raises ValueError if this is no seed of a generator."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed = {seed!r} must be a whole number in [0, 2³²)")


def random_rotation(rng: np.random.RandomState, dimension: int) -> jax.Array:
    """A uniformly distributed orthogonal matrix `[D, D]`.

    Mezzadri, arXiv:math-ph/0609050.
    """
    q, r = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    return jnp.asarray(q * np.sign(np.diag(r)), jnp.float32)


def rotated(rotation: jax.Array | None, z: jax.Array) -> jax.Array:
    """The vector `[D]` with coordinates z along the columns; None is no rotation."""
    # In full precision on every device: the closed forms are the point.
    return z if rotation is None else jnp.matmul(rotation, z, precision="highest")


def rotated_back(rotation: jax.Array | None, x: jax.Array) -> jax.Array:
    """The coordinates `[D]` of x along the columns; None is no rotation."""
    return x if rotation is None else jnp.matmul(x, rotation, precision="highest")


class Landscape(abc.ABC):
    """What tasks without a model share; subclasses are final frozen dataclasses."""

    dimension: int
    """Number of coordinates (`D`)."""

    @abc.abstractmethod
    def load_data(self) -> Dataset:
        """What is fixed of the landscape (see `Task.load_data`)."""

    @abc.abstractmethod
    def optimum(self, dataset: Dataset) -> Params:
        """The position of the lowest expected loss."""

    @abc.abstractmethod
    def loss(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The height `[]` at a position (see `Task.loss`)."""

    @property
    def loss_at_chance(self) -> float:
        """The loss at initialization, averaged over 64 keys."""
        return initial_loss(self)

    @property
    def lowest_loss(self) -> float:
        """The expected loss at the optimum."""
        return 0.0

    @property
    def width(self) -> int | None:
        """None: there is no model to grow (see `Task.width`)."""
        return None

    @property
    def depth(self) -> int | None:
        """None: there is no model to deepen (see `Task.depth`)."""
        return None

    def at_width(self, width: int) -> Self:
        """Raises ValueError: there is no width."""
        raise ValueError(f"{type(self).__name__} has no width to set to {width}")

    def at_depth(self, depth: int) -> Self:
        """Raises ValueError: there is no depth."""
        raise ValueError(f"{type(self).__name__} has no depth to set to {depth}")

    def with_rules(self, rules: Rules) -> Self:
        """The task itself: no axis scales."""
        del rules
        return self

    def init(self, key: jax.Array) -> Params:
        """A position whose coordinates are drawn from N(0, 1)."""
        return {"x": jax.random.normal(key, (self.dimension,))}

    def specs(self) -> Any:
        """Specs of the position: a vector that does not scale."""
        shape = (self.dimension,)
        return {"x": ParamSpec(Axes.parse("-> fixed"), shape, shape)}

    def draw(self, dataset: Dataset, key: jax.Array, split: Split, num: int) -> Draws:
        """Nothing is random, `[num]`."""
        del dataset, key, split
        return jnp.zeros([num])

    def batch(self, dataset: Dataset, draw: Draws, split: Split) -> Batch:
        """The landscape itself."""
        del draw, split
        return dataset

    def whole(self, dataset: Dataset, split: Split) -> Batch:
        """The landscape itself; of a noisy one, what gives the expected loss."""
        del split
        return dataset

    def activations(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """Nothing: there are no layers."""
        del params, key, batch
        return {}
