"""Text on the device: one packed array of tokens per split, windows cut in-graph.

A batch is a set of windows of `L` tokens, and its targets are the same windows one
token later. A window starts anywhere in its split, so a split of `n` tokens has
`n - L` different ones, and none reaches into another split.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import SPLITS, Split
from tasks.data.arrays import draw_rows
from tasks.source import Source


class Text(Source):
    """A source of tokenized text: a frozen dataclass that describes it."""

    vocab_size: int
    """Number of different tokens (`V`), 0…V-1: a field or a property."""

    @abc.abstractmethod
    def load(self) -> TextDataset:
        """The dataset as device arrays."""


class TextDataset(NamedTuple):
    """Four disjoint splits, each one array of tokens `[n]` (see `token_dtype`)."""

    train: jax.Array
    inner_valid: jax.Array
    outer_valid: jax.Array
    test: jax.Array

    def split(self, name: Split) -> jax.Array:
        """The tokens of the split of that name."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}; there are {', '.join(SPLITS)}")
        return getattr(self, name)


class TextDraws(NamedTuple):
    """What is random about `num` batches of `B` windows."""

    starts: jax.Array  # [num, B] int32: where in the split
    places: jax.Array | None = None  # [num, B] int32: where they lie, if not there

    @property
    def at(self) -> jax.Array:
        """Where the windows begin in the array that is at hand."""
        return self.starts if self.places is None else self.places


class TextBatch(NamedTuple):
    """Windows of tokens, and for each token the one that follows it."""

    inputs: jax.Array  # [B, L] int32
    targets: jax.Array  # [B, L] int32


def token_dtype(vocab_size: int) -> type[np.integer]:
    """The smallest type that holds the tokens 0…`vocab_size`-1."""
    if vocab_size <= 1 << 8:
        return np.uint8
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def to_device(tokens: Mapping[str, np.ndarray]) -> TextDataset:
    """The arrays of the four splits on the device."""
    # jnp.array copies: the device must not see the file behind a memory map.
    # Concrete even where a caller is being traced, for callers keep the result.
    with jax.ensure_compile_time_eval():
        return TextDataset(*(jnp.array(tokens[split]) for split in SPLITS))


def check_length(dataset: TextDataset, split: Split, length: int) -> int:
    """The number of windows of `length` tokens in a split.

    Raises:
        ValueError: if there is none.
    """
    size = len(dataset.split(split))
    if size < length + 1:
        raise ValueError(
            f"split {split!r} has {size} tokens, but a window of length = {length} "
            f"and its last target need {length + 1}"
        )
    return size - length


def draw_starts(
    dataset: TextDataset,
    key: jax.Array,
    split: Split,
    num: int,
    batch_size: int,
    length: int,
) -> jax.Array:
    """Where the windows of `num` batches start, `[num, B]` int32, uniformly."""
    windows = check_length(dataset, split, length)
    return draw_rows(key, windows, num, batch_size)


def even_starts(
    dataset: TextDataset, split: Split, max_windows: int, length: int
) -> np.ndarray:
    """Starts `[W]` int32 of evenly spaced windows that do not overlap.

    The first begins the split and the last ends it. There are `max_windows`, or as
    many as the split has room for.
    """
    last = check_length(dataset, split, length) - 1
    num = min(max_windows, (last + length) // length)
    return np.linspace(0, last, num).astype(np.int32)


def fetch(
    dataset: TextDataset, draws: TextDraws, length: int
) -> tuple[np.ndarray, TextDraws]:
    """The training windows that some draws name, one after the other, on the host.

    Args:
        dataset: on the host.
        draws: with any axes `[...]` before `[num, B]`.
        length: tokens of a window (`L`).

    Returns:
        Tokens `[..., num · B · (L + 1)]` as a NumPy array, and the draws with places
        among them.
    """
    starts = np.asarray(draws.starts)
    num, batch_size = starts.shape[-2:]
    tokens = np.asarray(dataset.train)
    rows = tokens[starts[..., None] + np.arange(length + 1)]
    places = (length + 1) * np.arange(num * batch_size, dtype=np.int32)
    return (
        rows.reshape(*starts.shape[:-2], -1),
        draws._replace(
            places=np.broadcast_to(places.reshape(num, batch_size), starts.shape)
        ),
    )


def gather(
    dataset: TextDataset, starts: jax.Array | np.ndarray, split: Split, length: int
) -> TextBatch:
    """The windows that begin at `starts` `[B]`."""
    check_length(dataset, split, length)
    tokens = dataset.split(split)

    def window(start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(tokens, (start,), (length + 1,))

    windows = jax.vmap(window)(jnp.asarray(starts)).astype(jnp.int32)
    return TextBatch(windows[:, :-1], windows[:, 1:])
