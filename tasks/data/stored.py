"""A fixed number of batches taken from foreign iterators.

The position of an iterator cannot be stored in a checkpoint. So batches are taken from
it once; afterwards a batch is a function of a key: one of the stored batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from tasks.base import SPLITS, Batch, Split
from tasks.data.arrays import Splits, check_values, is_numeric, on_device


def store(datasets: Any, num_train: int, num_held_out: int) -> Splits:
    """Takes batches from four iterators; returns splits whose rows are batches.

    Args:
        datasets: has attributes `train`, `inner_valid`, `outer_valid` and `test`, each
            an iterator of trees of arrays.
        num_train: number of batches to take from train.
        num_held_out: number of batches to take from each other split.

    Raises:
        ValueError: if an iterator is missing or ends early, or a batch does not consist
            of arrays of finite numbers or differs in shape from the first one of its
            split.
    """
    missing = [split for split in SPLITS if getattr(datasets, split, None) is None]
    if missing:
        raise ValueError(
            f"datasets = {type(datasets).__name__} has no {', '.join(missing)}: there "
            f"must be four iterators, {', '.join(SPLITS)}"
        )
    stored = []
    for split in SPLITS:
        num = num_train if split == "train" else num_held_out
        batches = _take(getattr(datasets, split), split, num)
        for index, batch in enumerate(batches):
            _check_like(batches[0], batch, f"datasets.{split}, batch {index}")
        stored.append(jax.tree.map(lambda *arrays: np.stack(arrays), *batches))
    return on_device(Splits(*stored))


def _take(source: Iterable[Batch], split: Split, num: int) -> list[Batch]:
    # Some iterators have __next__ but no __iter__.
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
        batches.append(_copied(batch, f"datasets.{split}, batch {len(batches)}"))
    return batches


def _copied(batch: Batch, where: str) -> Batch:
    """Copies the batch: many iterators write the next one into the same memory."""
    if not jax.tree.leaves(batch):
        raise ValueError(f"{where} holds no array")

    def copy(path: Any, leaf: Any) -> np.ndarray:
        array, name = np.array(leaf), f"{where}{jax.tree_util.keystr(path)}"
        if not is_numeric(array):
            raise ValueError(
                f"{name} is a {type(leaf).__name__} of dtype {array.dtype}; a batch "
                "must be a tree of arrays of numbers"
            )
        check_values(array, name)
        return array

    return jax.tree_util.tree_map_with_path(copy, batch)


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
