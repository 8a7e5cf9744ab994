"""Batches from foreign iterators, a fixed number of them kept as arrays.

An iterator has a position and no seed: what it gives next depends on who asked before,
and nothing of that can be stored in a checkpoint. So a number of batches is taken from
it once, and from then on a batch is a function of a key: one of those that are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import SPLITS, Batch, Split


class StoredBatches(NamedTuple):
    """Batches of each split, `[n]` in front of every array."""

    train: Batch
    inner_valid: Batch
    outer_valid: Batch
    test: Batch

    def split(self, name: Split) -> Batch:
        """The batches of the split of that name."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}; there are {', '.join(SPLITS)}")
        return getattr(self, name)

    def draw(self, key: jax.Array, name: Split, num: int) -> jax.Array:
        """Which of its batches, `[num]` int32, uniform with replacement."""
        size = jax.tree.leaves(self.split(name))[0].shape[0]
        return jax.random.randint(key, (num,), 0, size)

    def batch(self, index: jax.Array, name: Split) -> Batch:
        """The batch that one draw names."""
        return jax.tree.map(lambda x: x[index], self.split(name))


def store(datasets: Any, num_train: int, num_held_out: int) -> StoredBatches:
    """Takes batches from four iterators.

    Args:
        datasets: has attributes `train`, `inner_valid`, `outer_valid` and `test`, each
            an iterator of trees of arrays.
        num_train: batches to take of train.
        num_held_out: batches to take of each other split.

    Raises:
        ValueError: if an iterator is missing or ends early, or if a batch is not made
            of arrays of numbers, or not shaped as the first one of its split.
    """
    missing = [split for split in SPLITS if getattr(datasets, split, None) is None]
    if missing:
        raise ValueError(
            f"datasets = {type(datasets).__name__} has no {', '.join(missing)}: there "
            f"must be four iterators, {', '.join(SPLITS)}"
        )
    stored = {}
    for split in SPLITS:
        num = num_train if split == "train" else num_held_out
        batches = _take(getattr(datasets, split), split, num)
        for index, batch in enumerate(batches):
            _check_like(batches[0], batch, f"datasets.{split}, batch {index}")
        # Concrete even where a caller is being traced, for callers keep the result.
        with jax.ensure_compile_time_eval():
            stored[split] = jax.tree.map(_stacked, *batches)
    return StoredBatches(**stored)


def _take(source: Iterable[Batch], split: Split, num: int) -> list[Batch]:
    # Some give only __next__, which is all that they promise.
    ahead: Any = source if hasattr(source, "__next__") else iter(source)
    batches: list[Batch] = []
    for _ in range(num):
        try:
            batch = next(ahead)
        except StopIteration:
            raise ValueError(
                f"datasets.{split} ended after {len(batches)} of {num} batches: ask "
                "for fewer, or give an iterator that goes on"
            ) from None
        path = f"datasets.{split}, batch {len(batches)}"
        batches.append(_copied(batch, path))
    return batches


def _copied(batch: Batch, where: str) -> Batch:
    """The batch as NumPy arrays of its own."""
    if not jax.tree.leaves(batch):
        raise ValueError(f"{where} holds no array")

    def copy(path: Any, leaf: Any) -> np.ndarray:
        # A copy: many an iterator writes its next batch into the same memory.
        array = np.array(leaf)
        kind = array.dtype
        if not (jnp.issubdtype(kind, jnp.number) or jnp.issubdtype(kind, jnp.bool_)):
            raise ValueError(
                f"{where}{jax.tree_util.keystr(path)} is a {type(leaf).__name__} of "
                f"dtype {kind}; a batch must be a tree of arrays of numbers"
            )
        return array

    return jax.tree_util.tree_map_with_path(copy, batch)


def _stacked(*arrays: np.ndarray) -> jax.Array:
    return jnp.asarray(np.stack(arrays))


def _check_like(first: Batch, batch: Batch, where: str) -> None:
    if jax.tree.structure(batch) != jax.tree.structure(first):
        raise ValueError(
            f"{where} has the structure {jax.tree.structure(batch)}; that of the "
            f"first batch is {jax.tree.structure(first)}"
        )
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(batch), jax.tree.leaves(first), strict=True
    )
    for (path, leaf), one in pairs:
        if (leaf.shape, leaf.dtype) != (one.shape, one.dtype):
            raise ValueError(
                f"{where}{jax.tree_util.keystr(path)} has shape {leaf.shape} and dtype "
                f"{leaf.dtype}; in the first batch {one.shape} and {one.dtype}"
            )
