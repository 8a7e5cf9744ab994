"""Text of datasets prepared by TensorFlow Datasets, in four splits.

Rows are documents, or lines, or the whole text. They are joined in the order of the
disk, and the text is cut by position. Where rows are small, as in anything but a text
that is one row, a cut moves to the end of one, so no document is in two splits.
"""

from __future__ import annotations

import array
import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configuration.fields import configuration
from tasks.base import SPLITS, Split
from tasks.data import prepared
from tasks.data.cache import cached
from tasks.data.cutting import cut, end_within
from tasks.data.prepared import Prepared
from tasks.data.text import Text, TextDataset, to_device
from tasks.data.tokenizers import Bytes, Tokenizer, tokenize

FEATURE = "text"
"""The feature of a row that is read."""
MIN_BYTES = 1000
"""The smallest limit: what is less is not worth being cut."""
# The number of this way to cut and to join: whoever changes it raises it.
_CUT = 2


@configuration
class TFDSText(Text):
    """The text of a prepared dataset whose rows have a feature `text`.

    The train split of the dataset is cut by position, 80 % train, 10 % inner_valid and
    10 % outer_valid, and its test split is test as it is. Where there is no test split,
    validation takes its place; where neither is, train is cut 70/10/10/10.

    Rows are joined by newlines, in the order of the disk; nothing else marks where one
    ends. Each cut moves on to the end of the row it falls into, or if that is more than
    2 % of the text away, to the end of the line: rows are in one split, but for those
    longer than that.
    """

    name: str = "tiny_shakespeare"
    """As TFDS writes it: `name`, `name/config`, `name:1.2.3`."""
    tokenizer: Tokenizer = Bytes()
    """What makes tokens of the text; it learns from train alone."""
    max_bytes: int | None = None
    """How much of the dataset's train split is read, in bytes of text; None is all.

    It is the beginning in the order of the disk, up to the last end of a line that is
    within the limit. This text is what is cut, by the same shares. If the limit leaves
    something out, as much of the test split's beginning is test as a tenth of the
    limit, which is the size of outer_valid; else the test split is whole. Of the files
    only the first are read that hold so much, each of them to its end, so that all its
    records are verified.
    """

    def __post_init__(self) -> None:
        prepared.check_name(self.name)
        limit = self.max_bytes
        if limit is not None and limit < MIN_BYTES:
            raise ValueError(
                f"max_bytes = {limit} must be a whole number of at least {MIN_BYTES} "
                "bytes, or None for the whole dataset"
            )

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self.tokenizer.vocab_size

    @property
    def label(self) -> str:
        """Name of the dataset."""
        return self.name

    def missing(self) -> str | None:
        """Returns why the dataset is not on this machine; None if it is."""
        return prepared.missing(self.name)

    def fingerprint(self) -> str:
        """Returns what the prepared dataset declares."""
        return prepared.fingerprint(self.name)

    def num_bytes(self) -> None:
        """Returns None: the number of tokens shows when the text is cut."""

    def load(self) -> TextDataset:
        """The dataset as device arrays (read once per process and folder).

        Raises:
            ValueError: in one line, if the dataset is not there, is damaged or has no
                text.
        """
        return _load(self, prepared.data_dir())

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens `[n]`, for inspection."""
        learned = _tokens(self, prepared.data_dir())["learned"]
        return self.tokenizer.decode(learned, tokens)


class Parts(NamedTuple):
    """What was read of a dataset."""

    texts: dict[Split, bytes]
    """The text of each split."""
    shards: tuple[Path, ...]
    """The files that were read."""


def read_splits(dataset: Prepared, max_bytes: int | None = None) -> Parts:
    """Reads the four splits, of a train split of at most `max_bytes` if given.

    Raises:
        ValueError: in one line, if a file is damaged or a split would be empty.
    """
    held_out = _held_out(dataset)
    train = _read(dataset, "train", max_bytes)
    shares = (0.8, 0.9) if held_out else (0.7, 0.8, 0.9)
    texts, shards = cut(train.text, shares, train.ends), train.shards
    if held_out:
        limit = None if max_bytes is None or train.whole else max_bytes // 10
        test = _read(dataset, held_out, limit)
        texts, shards = [*texts, bytes(test.text)], (*shards, *test.shards)
    parts = dict(zip(SPLITS, texts, strict=True))
    for split, text in parts.items():
        if not text:
            raise ValueError(
                f"dataset {str(dataset)!r} has no text for the split {split!r}: the "
                f"{len(train.text)} bytes of its train split that are read have too "
                "few rows or lines to be cut, or its test split is empty"
            )
    return Parts(parts, shards)


def _held_out(dataset: Prepared) -> str | None:
    if "train" not in dataset.splits:
        raise ValueError(
            f"dataset {str(dataset)!r} has no split 'train'; there are "
            f"{', '.join(dataset.splits)}"
        )
    return next((s for s in ("test", "validation") if s in dataset.splits), None)


class _Joined(NamedTuple):
    """Rows of a split, joined."""

    text: bytearray
    ends: Sequence[int]  # behind the newline of each row but the last
    whole: bool  # whether that is all there is
    shards: tuple[Path, ...]  # which were read, each to its end


def _read(dataset: Prepared, split: str, max_bytes: int | None) -> _Joined:
    """Reads a split, or as many of its shards as `max_bytes` need, each to its end."""
    bounds = list(itertools.accumulate(dataset.shard_lengths[split]))
    text, ends, num, taken = bytearray(), array.array("q"), 0, 0
    limit = math.inf if max_bytes is None else max_bytes
    for num, row in enumerate(prepared.read(dataset, split), 1):
        if num == 1 or len(text) < limit:
            if num > 1:
                text += b"\n"
                ends.append(len(text))
            content = row[FEATURE]
            text += content if isinstance(content, bytes) else str(content).encode()
            taken = num
        if len(text) >= limit and num == bounds[bisect.bisect_left(bounds, num)]:
            break
    whole = taken == dataset.splits[split] and len(text) <= limit
    if max_bytes is not None:
        del text[end_within(text, max_bytes) :]
        del ends[bisect.bisect_right(ends, len(text)) :]
    shards = dataset.shards[split][: bisect.bisect_left(bounds, num) + 1]
    return _Joined(text, ends, whole, shards)


def _check(dataset: Prepared) -> None:
    """Raises ValueError if rows have no text."""
    feature = dataset.features.get(FEATURE)
    if feature is None or feature.kind != "text":
        declared = ", ".join(f"{k} ({f.kind})" for k, f in dataset.features.items())
        raise ValueError(
            f"dataset {str(dataset)!r} has no text feature {FEATURE!r}; its features "
            f"are {declared}"
        )


@functools.cache
def _tokens(source: TFDSText, folder: Path) -> dict[str, np.ndarray]:
    del folder  # part of the key: the same name is another dataset elsewhere
    dataset = prepared.open_dataset(source.name)
    _check(dataset)
    held_out = _held_out(dataset)
    tokenizer = source.tokenizer
    fingerprint: dict[str, Any] = {
        "dataset": dataset.fingerprint,
        "cut": _CUT,
        "max_bytes": source.max_bytes,
        "tokenizer": [repr(tokenizer), tokenizer.version],
    }
    shards: list[Path] = []

    def make() -> dict[str, np.ndarray]:
        parts = read_splits(dataset, source.max_bytes)
        shards.extend(parts.shards)
        try:
            return tokenize(tokenizer, parts.texts)
        except ValueError as error:
            raise ValueError(f"dataset {str(dataset)!r}: {error}") from None

    return cached(
        f"{dataset}-{type(tokenizer).__name__}",
        fingerprint,
        make,
        [*dataset.shards["train"], *dataset.shards.get(held_out or "", ())],
        read=lambda: shards,
    )


@functools.cache
def _load(source: TFDSText, folder: Path) -> TextDataset:
    return to_device(_tokens(source, folder))
