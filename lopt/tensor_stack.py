"""All tensors of a tree as the rows of one matrix.

A network that looks at whole tensors sees them as one batch `[R, F]`, a row for each:
its cost to compile does not grow with their number, and nothing depends on their order.
A stacked (scanned) parameter counts as the tensors that it stacks, so a scanned model
trains as the unscanned one does. What optax hides and what has no entries has no row.

Between tree and matrix a tensor is an array `[n, *S]`: `n` tensors of shape `S`, n = 1
unless stacked, in at least float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lopt.base import Specs, is_masked
from parametrization.rules import Rules
from parametrization.spec import ParamSpec


@dataclasses.dataclass(frozen=True)
class Tensors:
    """One leaf of the tree: `count` tensors of one shape."""

    index: int
    """Position among the leaves of the tree."""
    spec: ParamSpec

    @property
    def count(self) -> int:
        """Number of tensors, the product of the stacked axes."""
        return math.prod(self.spec.shape[: len(self.spec.axes.stacked)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each."""
        return tuple(self.spec.shape[len(self.spec.axes.stacked) :])


@dataclasses.dataclass(frozen=True)
class TensorStack:
    """Which leaves of a tree have rows, and how to go there and back."""

    structure: Any
    """Structure of the tree, hidden leaves counted."""
    tensors: tuple[Tensors, ...]
    """The leaves that have rows, in the tree's order."""

    @classmethod
    def of(cls, tree: Any, specs: Specs) -> TensorStack:
        """Describes a tree of arrays (parameters or gradients).

        Raises:
            ValueError: if the specs are those of another model.
        """
        leaves, structure = jax.tree.flatten(tree, is_leaf=is_masked)
        tensors = []
        for index, (leaf, spec) in enumerate(
            zip(leaves, structure.flatten_up_to(specs), strict=True)
        ):
            if is_masked(leaf):
                continue
            if jnp.shape(leaf) != tuple(spec.shape):
                raise ValueError(
                    f"a parameter of shape {jnp.shape(leaf)} has the spec of one of "
                    f"shape {spec.shape}: specs must be those of this model, not of "
                    "its base"
                )
            if leaf.size:
                tensors.append(Tensors(index, spec))
        return cls(structure, tuple(tensors))

    @property
    def num_rows(self) -> int:
        """Number of tensors, R."""
        return sum(tensor.count for tensor in self.tensors)

    def select(self, tree: Any) -> list[Any]:
        """Subtrees at the leaves that have rows."""
        leaves = self.structure.flatten_up_to(tree)
        return [leaves[tensor.index] for tensor in self.tensors]

    def arrays(self, tree: Any) -> list[jax.Array]:
        """The tensors `[n, *S]`, in at least float32."""
        return [
            jnp.reshape(leaf, (tensor.count, *tensor.shape)).astype(wide(leaf))
            for tensor, leaf in zip(self.tensors, self.select(tree), strict=True)
        ]

    def gradients(self, grads: Any, rules: Rules) -> list[jax.Array]:
        """The gradients `[n, *S]` as the base model would see them.

        Divided by how much the parametrization makes them shrink (see
        `lopt.baselines.unscale_gradients`), so that floors and logarithms of
        magnitudes mean the same at every width; at the base width nothing changes.
        """
        return [
            grad / rules.gradient_scale(tensor.spec)
            for tensor, grad in zip(self.tensors, self.arrays(grads), strict=True)
        ]

    def split(self, rows: jax.Array) -> list[jax.Array]:
        """Cuts rows `[R, ...]` into those of each leaf, `[n, ...]`."""
        parts, start = [], 0
        for tensor in self.tensors:
            parts.append(rows[start : start + tensor.count])
            start += tensor.count
        return parts

    def replace(self, tree: Any, values: Iterable[Any]) -> Any:
        """The tree with new values at the leaves that have rows."""
        leaves = self.structure.flatten_up_to(tree)
        for tensor, value in zip(self.tensors, values, strict=True):
            leaves[tensor.index] = value
        return self.structure.unflatten(leaves)

    def updates(self, params: Any, steps: Sequence[jax.Array], rules: Rules) -> Any:
        """Updates to add: minus the steps `[n, *S]`, scaled by the parametrization."""
        zeros = jax.tree.map(
            lambda p: p if is_masked(p) else jnp.zeros_like(p),
            params,
            is_leaf=is_masked,
        )
        scaled = [
            (-rules.step_scale(tensor.spec) * step)
            .reshape(tensor.spec.shape)
            .astype(jnp.result_type(param))
            for tensor, step, param in zip(
                self.tensors, steps, self.select(params), strict=True
            )
        ]
        return self.replace(zeros, scaled)


def wide(x: Any) -> jnp.dtype:
    """The type in which an array is computed with: at least float32."""
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def spread(values: jax.Array, like: jax.Array) -> jax.Array:
    """Numbers `[n]`, one a tensor, in a shape that meets `[n, *S]`."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1))
