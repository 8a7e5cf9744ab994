"""Tasks from two functions and some data.

`docs/howto/own_task.md` and `examples/own_task.py` show how to evaluate and how to
meta-train on one. With annotated parameters and a width it scales by μP: see
`FunctionTask.width`.

Functions and data compare by identity. Tasks with the same functions, data and numbers
share compiled programs; a lambda that is defined again, as by running a notebook's cell
again, compiles again. Compiled programs keep the task and its data in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self, final

import jax

from configuration import identity
from configuration.fields import configuration, later
from parametrization.inference import infer_specs
from parametrization.rules import Rules
from parametrization.spec import Named, param_specs, unbox
from tasks.base import UNIT, Batch, Dataset, Draws, Loss, Params, Split, batch_keys
from tasks.custom.base import EveryBatch, OpaqueTask, checked_loss, never_constant
from tasks.data.arrays import HeldSplits, hold
from tasks.models.base import check_positive

NUM_WHOLE = 16
"""Batches that represent a whole split of endless data."""


@final
@configuration
class FunctionTask(OpaqueTask):
    """A task from a function that returns parameters and one that returns a loss."""

    init_fn: Callable[..., Params]
    """`key -> parameters`, or `(key, width) -> parameters` of a task with a width: a
    tree of arrays, plain or annotated by `named`."""
    loss_fn: Callable[[Params, jax.Array, Batch], Any]
    """`(parameters, key, batch) -> loss []`, or the loss and a dictionary of auxiliary
    values, of which "accuracy" is reported by evaluations."""
    data: Any = None
    """A tree of arrays with a row per example, cut into four disjoint splits by a fixed
    permutation; or `Splits` of such trees (see `hold`); or a function `key -> batch`
    that makes endless data; or None: batches are `()`."""
    batch_size: int = 128
    """Examples per batch, drawn with replacement; not used by a function."""
    width: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    """Passed to `init_fn`; None if the task has no width to grow. For μP, annotate each
    parameter with its axes, as `initializer("width -> outputs")(key, shape)` does, and
    let the loss multiply the readout's product by base width over width."""
    base_width: int | None = None
    """The width at which every multiplier of μP is 1; `width` if None."""
    chance: float | None = None
    """Loss at chance, such as `math.log(num_classes)`; if None, the loss at
    initialization averaged over 64 keys."""
    layers_fn: Callable[[Params, jax.Array, Batch], dict[str, jax.Array]] | None = None
    """`(parameters, key, batch) -> {name: outputs of a layer}`, for coordinate checks;
    None if there are none."""
    name: str = "FunctionTask"
    """Name in messages."""
    version: str | None = None
    """Identifies the functions to caches, instead of their code and what it refers to:
    change it whenever they change. Needed where they have no file of source."""
    unit: str = later(UNIT)
    """Unit of the loss in tables and figures, such as "nats"."""

    def __post_init__(self) -> None:
        for field in ("init_fn", "loss_fn", "layers_fn"):
            value = getattr(self, field)
            if not callable(value) and (field != "layers_fn" or value is not None):
                raise ValueError(f"{field} = {value!r} must be a function")
        check_positive(self, "batch_size")
        if self.width is not None:
            check_positive(self, "width")
            if self.base_width is None:
                object.__setattr__(self, "base_width", self.width)
            check_positive(self, "base_width")
        elif self.base_width is not None:
            raise ValueError(f"base_width = {self.base_width} needs a width")
        if not (self.data is None or callable(self.data) or self._holds):
            object.__setattr__(self, "data", hold(self.data))
        self.specs()
        self.check()

    def identified_by(self) -> Mapping[str, Any]:
        """Returns the fields, or the version in place of the functions."""
        fields = identity.own_fields(self)
        if self.version is None:
            return fields
        return {name: x for name, x in fields.items() if not callable(x)}

    def at_width(self, width: int) -> Self:
        """Returns the same task with parameters of another width."""
        if self.width is None:
            raise ValueError(
                f"{self.name} has no width to set to {width}: give width and an "
                "init_fn of (key, width)"
            )
        return dataclasses.replace(self, width=width)

    def with_rules(self, rules: Rules) -> Self:
        """Returns the task itself in the standard parametrization, if it has no width.

        Raises:
            ValueError: otherwise, since the functions decide what a width does.
        """
        if self.width is None:
            return super().with_rules(rules)
        raise ValueError(
            f"the functions of {self.name} decide about its parametrization, so "
            f"{rules.name} cannot be set from outside"
        )

    def init(self, key: jax.Array) -> Params:
        """Returns initial parameters."""
        return never_constant(unbox(self._init_at(self.width)(key)), key)

    def specs(self) -> Any:
        """Returns specs of the parameters, from annotations or guessed from shapes.

        A guess: an axis scales if its size grows with the width, the last axis is
        fan-out, and those before it are fan-in.

        Raises:
            ValueError: if some parameters are annotated and one is not, or the number
                of parameters depends on the width.
        """
        init, base = self._init_at(self.width), self._init_at(self.base_width)
        shapes = _shapes(init)
        leaves = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, Named))
        if any(isinstance(leaf, Named) for leaf in leaves):
            return param_specs(init, base)
        if self.base_width is None:
            return infer_specs(shapes, shapes)
        # Compared with twice the base width, so that roles show at the base width too.
        base_shapes = _shapes(base)
        roles = infer_specs(_shapes(self._init_at(2 * self.base_width)), base_shapes)
        return jax.tree.map(
            lambda role, x, y: dataclasses.replace(
                role, shape=x.shape, base_shape=y.shape
            ),
            roles,
            shapes,
            base_shapes,
        )

    def load_data(self) -> Dataset:
        """Returns the four splits; `()` if data is endless or None."""
        return self.data.splits if self._holds else ()

    def draw(self, dataset: Dataset, key: jax.Array, split: Split, num: int) -> Draws:
        """Draws the rows of `num` batches, or a key for each, `[num]` in front."""
        if self._holds:
            return dataset.draw(key, split, num, self.batch_size)
        return batch_keys(key, split, num)

    def batch(self, dataset: Dataset, draw: Draws, split: Split) -> Batch:
        """Returns the examples of some rows, or the function's batch for a key."""
        if self._holds:
            return dataset.batch(draw, split)
        return () if self.data is None else self.data(draw)

    def whole(self, dataset: Dataset, split: Split) -> Batch:
        """Returns all examples of a split; 16 fixed batches of endless data."""
        if self._holds:
            return dataset.split(split)
        keys = batch_keys(jax.random.key(0), split, NUM_WHOLE)
        return () if self.data is None else EveryBatch(jax.lax.map(self.data, keys))

    def loss_of_batch(self, params: Params, key: jax.Array, batch: Batch) -> Loss:
        """Returns the checked loss of a single batch."""
        result = self.loss_fn(params, key, batch)
        loss, aux = result if isinstance(result, tuple) else (result, {})
        return checked_loss(self.name, loss, aux)

    def activations(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """Returns the outputs of layers by `layers_fn`."""
        return {} if self.layers_fn is None else self.layers_fn(params, key, batch)

    @property
    def _holds(self) -> bool:
        return isinstance(self.data, HeldSplits)

    def _init_at(self, width: int | None) -> Callable[[jax.Array], Params]:
        return self.init_fn if width is None else lambda key: self.init_fn(key, width)


def _shapes(init: Callable[[jax.Array], Params]) -> Any:
    return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
