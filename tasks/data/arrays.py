"""Datasets as four splits of arrays on the device."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import SPLITS, Batch, Split


def draw_rows(key: jax.Array, size: int, num: int, batch_size: int) -> jax.Array:
    """Draws rows of `num` batches, `[num, B]` int32, with replacement from `size`."""
    # Drawn flat: the same bits, in a fraction of the time to compile.
    flat = jax.random.randint(key, (num * batch_size,), 0, size)
    return flat.reshape(num, batch_size)


def places_in_window(rows: np.ndarray, size: int = 1) -> Any:
    """Returns where draws `[..., num, B]` of `size` elements each lie once fetched."""
    num, batch_size = rows.shape[-2:]
    places = size * np.arange(num * batch_size, dtype=np.int32)
    return np.broadcast_to(places.reshape(num, batch_size), rows.shape)


def select(splits: Any, name: Split) -> Any:
    """Returns the split of that name of a dataset with a field for each split."""
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}; there are {', '.join(SPLITS)}")
    return getattr(splits, name)


def on_device(tree: Any) -> Any:
    """Copies a tree of arrays to the device, where later writes to them are not seen.

    The copies are concrete even while a caller is being traced, so they can be kept.
    """
    with jax.ensure_compile_time_eval():
        return jax.tree.map(jnp.array, tree)


def is_numeric(array: np.ndarray) -> bool:
    """Whether JAX can hold the array: its elements are numbers or booleans."""
    return any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.number, jnp.bool_))


class Splits(NamedTuple):
    """Examples of the four splits: trees of arrays with one row per example."""

    train: Any
    inner_valid: Any
    outer_valid: Any
    test: Any

    def split(self, name: Split) -> Any:
        """Returns the split of that name."""
        return select(self, name)

    def draw(self, key: jax.Array, name: Split, num: int, batch_size: int) -> jax.Array:
        """Draws rows of `num` batches, `[num, B]` int32, with replacement."""
        return draw_rows(key, _num_rows(self.split(name)), num, batch_size)

    def batch(self, rows: jax.Array, name: Split) -> Batch:
        """Returns the examples in those rows."""
        return jax.tree.map(lambda x: x[rows], self.split(name))


@dataclasses.dataclass(frozen=True, eq=False)
class HeldSplits:
    """Splits on the device, compared by identity, so that a task can hold them."""

    splits: Splits


def hold(data: Any) -> HeldSplits:
    """Puts examples on the device, in four splits.

    Args:
        data: `Splits`, used as they are; or one tree of arrays with n rows each, dealt
            out by a fixed permutation: ⌈n/5⌉ to test, ⌈n/10⌉ each to inner_valid and
            outer_valid, the rest to train. Rows that belong together, such as frames
            of one film, must come as `Splits`, or held-out rows are not new.

    Raises:
        ValueError: if a leaf is not an array of finite numbers, arrays differ in their
            number of rows, there are too few rows, or splits differ in structure.
    """
    parts = data if isinstance(data, Splits) else _deal(_as_arrays(data, "data"))
    trees = [_as_arrays(part, name) for name, part in zip(SPLITS, parts, strict=True)]
    for name, tree in zip(SPLITS, trees, strict=True):
        if _num_rows(tree) < 1:
            raise ValueError(f"split {name} has no row")
        if _of_one_row(tree) != _of_one_row(trees[0]):
            raise ValueError(
                f"rows of {name} are {_of_one_row(tree)[0]}, those of train "
                f"{_of_one_row(trees[0])[0]}: they must be alike"
            )
    return HeldSplits(on_device(Splits(*trees)))


def _as_arrays(tree: Any, name: str) -> Any:
    """Converts leaves to NumPy arrays and checks that they have as many rows."""

    def convert(path: Any, leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        where = f"{name}{jax.tree_util.keystr(path)}"
        if not is_numeric(array) or not array.ndim:
            raise ValueError(
                f"{where} has dtype {array.dtype} and shape {array.shape}; it must be "
                "an array of numbers with one row per example"
            )
        check_values(array, where)
        return array

    arrays = jax.tree_util.tree_map_with_path(convert, tree)
    sizes = {len(array) for array in jax.tree.leaves(arrays)}
    if len(sizes) != 1:
        raise ValueError(
            f"the arrays of {name} have {sorted(sizes) or 'no'} rows; all must have "
            "the same number"
        )
    return arrays


def check_values(array: np.ndarray, where: str) -> None:
    """Checks numbers that a user passes in.

    A single NaN in a held-out row makes the loss of its whole split NaN, for every
    optimizer and after all the training.

    Raises:
        ValueError: if a value is not finite, or overflows the dtype in which JAX keeps
            it.
    """
    if jnp.issubdtype(array.dtype, jnp.inexact):
        finite = np.isfinite(array)
        if not finite.all():
            index = np.unravel_index(int(np.argmin(finite)), array.shape)
            place = f"[{', '.join(map(str, index))}]" if index else ""
            raise ValueError(
                f"{where}{place} is {array[index]}; data must be finite: leave such "
                "rows out, or mark them in an array of their own"
            )
    kept = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))
    if kept == array.dtype or not array.size or kept.kind not in "iuf":
        return
    limits = np.iinfo(kept) if kept.kind in "iu" else np.finfo(kept)
    for value in (array.min(initial=0), array.max(initial=0)):
        if not limits.min <= value <= limits.max:
            raise ValueError(
                f"{where} holds {value}, beyond {kept}, in which JAX keeps "
                f"{array.dtype}: scale it, or enable jax_enable_x64"
            )


def _deal(arrays: Any) -> Splits:
    num = _num_rows(arrays)
    test, valid = math.ceil(num / 5), math.ceil(num / 10)
    if num < 4:
        raise ValueError(f"data has {num} rows: four splits need 4 or more")
    order = np.random.RandomState(0).permutation(num)
    edges = (num - test - 2 * valid, num - test - valid, num - test)
    parts = np.split(order, edges)
    return Splits(*(jax.tree.map(lambda x, i=i: x[i], arrays) for i in parts))


def _num_rows(tree: Any) -> int:
    return len(jax.tree.leaves(tree)[0])


def _of_one_row(tree: Any) -> tuple[list[str], Any]:
    leaves, structure = jax.tree.flatten(tree)
    return [f"{x.dtype}{list(x.shape[1:])}" for x in leaves], structure
