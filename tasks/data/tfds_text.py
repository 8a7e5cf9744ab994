"""Text of datasets prepared by TensorFlow Datasets, in four splits.

Rows are documents, lines, or the whole text. They are joined in the order of the disk
and the text is cut by position; where rows are small, a cut moves to the end of one, so
no document is in two splits.
"""

from __future__ import annotations

import array
import bisect
import itertools
import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configuration.fields import configuration
from tasks.base import SPLITS, Split
from tasks.data import prepared
from tasks.data.cache import cached
from tasks.data.cutting import cut, end_within
from tasks.data.declared import Prepared
from tasks.data.tokenizers import Bytes, TokenizedText, Tokenizer, tokenize

FEATURE = "text"
"""The feature that is read."""
MIN_BYTES = 1000
"""Smallest `max_bytes`."""
# Version of the way rows are joined and cut, part of the cache key: raise on changes.
_CUT = 2
_READ = "files"
"""Name of the array of the numbers of the files that were read."""


@configuration
class TFDSText(TokenizedText):
    """The text of a prepared dataset whose rows have a feature `text`.

    The dataset's train split is cut 80/10/10 by position into train, inner_valid and
    outer_valid; its test split, or else its validation split, is test. Where there is
    neither, train is cut 70/10/10/10.

    Rows are joined by newlines in the order of the disk. Each cut moves to the end of
    its row, or if that is more than 2 % of the text away, to the end of its line: only
    longer rows are in two splits.
    """

    name: str = "tiny_shakespeare"
    """TFDS name: `name`, `name/config`, `name:1.2.3`."""
    tokenizer: Tokenizer = Bytes()
    """Tokenizer of the text; it learns from train alone."""
    max_bytes: int | None = None
    """Bytes of text to read of the dataset's train split; None reads all.

    The text is read in the order of the disk up to the last line end within the limit,
    and cut by the same shares. If the limit leaves something out, test is limited to a
    tenth of it, the size of outer_valid. Only the first files that hold so much are
    read, each to its end, so that all its records are verified.
    """

    def __post_init__(self) -> None:
        prepared.check_name(self.name)
        limit = self.max_bytes
        if limit is not None and limit < MIN_BYTES:
            raise ValueError(
                f"max_bytes = {limit} must be a whole number of at least {MIN_BYTES} "
                "bytes, or None for the whole dataset"
            )

    def state(self) -> Hashable:
        """Returns the folder of prepared datasets and the state of the files."""
        dataset = prepared.open_dataset(self.name)
        return prepared.data_dir(), prepared.state(dataset)

    @property
    def label(self) -> str:
        """Name of the dataset."""
        return self.name

    def missing(self) -> str | None:
        """Returns why the dataset is not on this machine; None if it is."""
        return prepared.missing(self.name)

    def content(self) -> str:
        """Returns the sha256 of the files that are read."""
        dataset, shards = prepared.open_dataset(self.name), self._shards()
        if self.max_bytes is not None:
            shards = [shards[i] for i in self._read()[_READ]]
        return prepared.content(dataset, shards)

    def num_bytes(self) -> None:
        """Returns None: the number of tokens shows when the text is cut."""

    def read_tokens(self) -> dict[str, np.ndarray]:
        """Reads the tokens of each split (see `TokenizedText.read_tokens`)."""
        return {name: x for name, x in self._read().items() if name != _READ}

    def _shards(self) -> list[Path]:
        """Returns all files of the splits that are read."""
        dataset = prepared.open_dataset(self.name)
        splits = ("train", dataset.held_out or "")
        return [s for split in splits for s in dataset.shards.get(split, ())]

    def _read(self) -> dict[str, np.ndarray]:
        """Returns the tokens of each split, and which files hold them."""
        dataset = prepared.open_dataset(self.name)
        feature = dataset.features.get(FEATURE)
        if feature is None or feature.kind != "text":
            raise ValueError(
                f"dataset {str(dataset)!r} has no text feature {FEATURE!r}; its "
                f"features are {dataset.listing}"
            )
        tokenizer, shards = self.tokenizer, self._shards()
        whole = self.max_bytes is None
        used: list[int] = []

        def make() -> dict[str, np.ndarray]:
            parts = read_splits(dataset, self.max_bytes)
            used.extend(shards.index(shard) for shard in parts.shards)
            try:
                tokens = tokenize(tokenizer, parts.texts)
            except ValueError as error:
                raise ValueError(f"dataset {str(dataset)!r}: {error}") from None
            return {**tokens, _READ: np.array(used)}

        about: dict[str, Any] = {
            "content": prepared.content(dataset, shards if whole else ()),
            "shards": [shard.name for shard in shards],
            "cut": _CUT,
            "max_bytes": self.max_bytes,
            "tokenizer": [repr(tokenizer), tokenizer.version],
        }
        name = f"{dataset}-{type(tokenizer).__name__}"
        return cached(name, about, make, shards, lambda: [shards[i] for i in used])


class Parts(NamedTuple):
    """Texts of a dataset, and the files they were read from."""

    texts: dict[Split, bytes]
    shards: tuple[Path, ...]


def read_splits(dataset: Prepared, max_bytes: int | None = None) -> Parts:
    """Reads the four splits, from at most `max_bytes` of the train split if given.

    Raises:
        ValueError: in one line, if a split would be empty or a file is damaged.
    """
    held_out = dataset.held_out
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


class _Joined(NamedTuple):
    text: bytearray
    ends: Sequence[int]  # where rows begin, without the first
    whole: bool  # whether this is the whole split
    shards: tuple[Path, ...]  # files that were read, each to its end


def _read(dataset: Prepared, split: str, max_bytes: int | None) -> _Joined:
    """Joins the rows of a split, or of as many of its files as `max_bytes` need."""
    dataset.check_split(split)
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
