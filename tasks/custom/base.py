"""Base of the tasks whose functions come from outside of this package.

Nothing is known of such a task but what its functions return. So that is checked when
the task is made (`checked_loss`), no layers are recorded, and the parametrization of
the forward pass is its author's.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from parametrization.rules import STANDARD, Rules
from tasks.base import BaseTask, Batch, Dataset, Loss, Params, initial_loss, sample


class EveryBatch(NamedTuple):
    """Several batches as one, with the mean of their losses (see `Task.whole`)."""

    batches: Batch  # [n] in front of every array


class OpaqueTask(BaseTask):
    """A task of unknown functions; subclasses are final frozen dataclasses."""

    name: str
    """Name in messages."""
    chance: float | None
    """Loss at chance, if it was given."""

    @abc.abstractmethod
    def loss_of_batch(self, params: Params, key: jax.Array, batch: Batch) -> Loss:
        """Returns the checked loss of a single batch."""

    def check(self) -> None:
        """Traces every function once, so that errors are reported at construction.

        Raises:
            ValueError: if the given loss at chance is not positive, a parameter is not
                floating-point, or the loss is not one number.
        """
        if self.chance is not None and not 0.0 < self.chance < math.inf:
            raise ValueError(
                f"loss at chance of {self.name} = {self.chance} must be positive"
            )

        def compute(dataset: Dataset, key: jax.Array) -> Any:
            return self.loss(self.init(key), key, sample(self, dataset, key))

        key = jax.eval_shape(lambda: jax.random.key(0))
        params = jax.eval_shape(self.init, key)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.size == 0 or not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"parameter {jax.tree_util.keystr(path) or 'params'} of "
                    f"{self.name} is {leaf.dtype}{list(leaf.shape)}; it must hold one "
                    "or more real floating-point numbers"
                )
        jax.eval_shape(compute, self.load_data(), key)

    @property
    def loss_at_chance(self) -> float:
        """The given value, or the loss at initialization averaged over 64 keys.

        Raises:
            ValueError: if that average is not positive, or not finite.
        """
        if self.chance is not None:
            return self.chance
        return checked_chance(self.name, initial_loss(self))

    def loss(self, params: Params, key: jax.Array, batch: Batch) -> Loss:
        """Returns the loss `[]` and auxiliary scalars, also of `EveryBatch`."""
        if not isinstance(batch, EveryBatch):
            return self.loss_of_batch(params, key, batch)
        num = jax.tree.leaves(batch)[0].shape[0]
        # One after the other: as much memory as one batch needs.
        losses = jax.lax.map(
            lambda xs: self.loss_of_batch(params, *xs),
            (jax.random.split(key, num), batch.batches),
        )
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), losses)

    def with_rules(self, rules: Rules) -> Self:
        """Returns the task itself in the standard parametrization.

        Raises:
            ValueError: for another one, which would have to change the forward pass.
        """
        if rules is STANDARD:
            return self
        raise ValueError(
            f"{self.name} computes its own forward pass, so {rules.name} cannot be "
            "set from outside; rules = STANDARD leaves it as it is"
        )


def checked_chance(name: str, chance: float) -> float:
    """Returns a mean loss at initialization if it can serve as the unit of a loss."""
    if 0.0 < chance < math.inf:
        return chance
    raise ValueError(
        f"the loss of {name} at initialization, averaged over 64 keys, is {chance}, "
        "which is no unit of a loss: give a positive loss at chance"
    )


def checked_loss(name: str, loss: Any, aux: Any) -> Loss:
    """Returns a loss in float32 or wider, and the means of its auxiliary values.

    Args:
        name: name of the task.
        loss: must be one number `[]`.
        aux: must be a mapping of arrays.

    Raises:
        ValueError: if either is not.
    """
    try:
        value = jnp.asarray(loss)
    except (TypeError, ValueError):
        raise ValueError(
            f"the loss of {name} is a {type(loss).__name__}; it must be one number"
        ) from None
    if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"the loss of {name} has shape {value.shape} and dtype {value.dtype}; it "
            "must be one floating-point number, such as the mean over the batch"
        )
    if not isinstance(aux, Mapping):
        raise ValueError(
            f"the auxiliary values of {name} are a {type(aux).__name__}; they must be "
            "a dictionary of arrays"
        )
    value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return value, {str(key): jnp.mean(x) for key, x in aux.items()}


def never_constant(params: Params, key: jax.Array) -> Params:
    """Returns the same parameters, with matrices the compiler cannot see as constant.

    jaxlib 0.10.2 for CPUs computes products with a matrix of equal constants wrongly
    (128 rows and more, 32 columns and more; `optimization_barrier` does not help). The
    loss of a zero readout is such a product, in one program with its initialization.
    """
    word = jax.random.key_data(key).ravel()[-1]

    def guarded(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        # Always true, which the compiler does not know: numbers in [1, 2), another for
        # each element, made of the key's bits. Every bit of the leaf stays, also of −0.
        bits = (jax.lax.iota(jnp.uint32, leaf.size) ^ word) >> 9 | 0x3F800000
        below = jax.lax.bitcast_convert_type(bits, jnp.float32) < 3.0
        return jnp.where(below.reshape(leaf.shape), leaf, leaf + 1)

    return jax.tree.map(guarded, params)
