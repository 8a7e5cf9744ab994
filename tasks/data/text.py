"""Text on the device: one packed array of tokens per split, windows cut in-graph.

A batch is a set of windows of `L` tokens; its targets are the same windows one token
later. Windows start anywhere in a split: one of `n` tokens has `n - L` of them.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import SPLITS, Split
from tasks.data.arrays import Splits, draw_rows, on_device, places_in_window
from tasks.source import Source

TextDataset = Splits
"""Four disjoint splits, each one array of tokens `[n]` (see `token_dtype`)."""


class Text(Source):
    """A source of tokenized text: a frozen dataclass that describes it."""

    vocab_size: int
    """Number of different tokens (`V`), 0…V-1: a field or a property."""

    @abc.abstractmethod
    def load(self) -> TextDataset:
        """Returns the dataset as device arrays; read once per process."""


class TextDraws(NamedTuple):
    """Random draws of `num` batches of `B` windows."""

    starts: jax.Array  # [num, B] int32: positions in the split
    places: jax.Array | None = None  # [num, B] int32: positions in a fetched window

    @property
    def at(self) -> jax.Array:
        """Positions in the array on the device."""
        return self.starts if self.places is None else self.places


class TextBatch(NamedTuple):
    """Windows of tokens, and the token that follows each of them."""

    inputs: jax.Array  # [B, L] int32
    targets: jax.Array  # [B, L] int32


def token_dtype(vocab_size: int) -> type[np.integer]:
    """Returns the smallest type that holds the tokens 0…`vocab_size`-1."""
    if vocab_size <= 1 << 8:
        return np.uint8
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def to_device(tokens: Mapping[str, np.ndarray]) -> TextDataset:
    """Copies the tokens of the four splits to the device."""
    return on_device(TextDataset(*(tokens[split] for split in SPLITS)))


def check_length(dataset: TextDataset, split: Split, length: int) -> int:
    """Returns the number of windows of `length` tokens in a split, at least 1.

    Raises:
        ValueError: if the split is too short.
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
    """Draws where the windows of `num` batches start, `[num, B]` int32."""
    windows = check_length(dataset, split, length)
    return draw_rows(key, windows, num, batch_size)


def even_starts(
    dataset: TextDataset, split: Split, max_windows: int, length: int
) -> np.ndarray:
    """Returns starts `[W]` int32 of evenly spaced windows that do not overlap.

    The first begins the split, the last ends it. `W` is `max_windows`, or what fits.
    """
    last = check_length(dataset, split, length) - 1
    num = min(max_windows, (last + length) // length)
    return np.linspace(0, last, num).astype(np.int32)


def fetch(
    dataset: TextDataset, draws: TextDraws, length: int
) -> tuple[np.ndarray, TextDraws]:
    """Fetches the training windows of draws `[..., num, B]` on the host.

    Returns:
        Tokens `[..., num · B · (L + 1)]` as a NumPy array, and the draws with their
        places among these.
    """
    starts = np.asarray(draws.starts)
    tokens = np.asarray(dataset.train)[starts[..., None] + np.arange(length + 1)]
    places = places_in_window(starts, length + 1)
    return tokens.reshape(*starts.shape[:-2], -1), draws._replace(places=places)


def gather(
    dataset: TextDataset, starts: jax.Array | np.ndarray, split: Split, length: int
) -> TextBatch:
    """Gathers the windows that begin at `starts` `[B]`."""
    check_length(dataset, split, length)
    tokens = dataset.split(split)

    def window(start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(tokens, (start,), (length + 1,))

    windows = jax.vmap(window)(jnp.asarray(starts)).astype(jnp.int32)
    return TextBatch(windows[:, :-1], windows[:, 1:])
