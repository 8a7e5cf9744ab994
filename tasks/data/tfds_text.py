"""Text of datasets prepared by TensorFlow Datasets, in four splits."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import SPLITS, Split
from tasks.data import prepared
from tasks.data.cache import cached
from tasks.data.prepared import Prepared
from tasks.data.text import Text, TextDataset, to_device
from tasks.data.tokenizers import Bytes, Tokenizer, tokenize

FEATURE = "text"
"""The feature of a row that is read."""
# How far behind its place a cut may move to reach the end of a line, in bytes.
_LINE = 1 << 12
# The number of this way to cut and to join: whoever changes it raises it.
_CUT = 1


@dataclasses.dataclass(frozen=True)
class TFDSText(Text):
    """The text of a prepared dataset whose rows have a feature `text`.

    The train split of the dataset is cut by position, 80 % train, 10 % inner_valid and
    10 % outer_valid, and its test split is test as it is. Where there is no test split,
    validation takes its place; where neither is, train is cut 70/10/10/10. Cuts are
    moved to the end of a line. Rows are joined by newlines, in the order of the disk.
    """

    name: str = "tiny_shakespeare"
    """As TFDS writes it: `name`, `name/config`, `name:1.2.3`."""
    tokenizer: Tokenizer = Bytes()
    """What makes tokens of the text; it learns from train alone."""

    def __post_init__(self) -> None:
        prepared.check_name(self.name)

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self.tokenizer.vocab_size

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


def read_splits(dataset: Prepared) -> dict[Split, bytes]:
    """The text of each split."""
    held_out = _held_out(dataset)
    train = _text(dataset, "train")
    if held_out is None:
        parts = cut(train, (0.7, 0.8, 0.9))
    else:
        parts = [*cut(train, (0.8, 0.9)), _text(dataset, held_out)]
    return dict(zip(SPLITS, parts, strict=True))


def cut(text: bytes, shares: tuple[float, ...]) -> list[bytes]:
    """Cuts a text at shares of its length, each moved to the end of a line.

    Lines that are very long are cut between two characters of UTF-8.
    """
    edges = [0]
    for share in shares:
        edge = max(edges[-1], round(share * len(text)))
        # A cut that stands behind a newline already stays there.
        end = text.find(b"\n", max(edge - 1, edges[-1]), edge + _LINE)
        if end >= 0:
            edge = end + 1
        while edge < len(text) and text[edge] & 0xC0 == 0x80:  # inside a character
            edge += 1
        edges.append(edge)
    return [text[a:b] for a, b in itertools.pairwise([*edges, len(text)])]


def _held_out(dataset: Prepared) -> str | None:
    if "train" not in dataset.splits:
        raise ValueError(
            f"dataset {str(dataset)!r} has no split 'train'; there are "
            f"{', '.join(dataset.splits)}"
        )
    return next((s for s in ("test", "validation") if s in dataset.splits), None)


def _text(dataset: Prepared, split: str) -> bytes:
    rows = (row[FEATURE] for row in prepared.read(dataset, split))
    return b"\n".join(r if isinstance(r, bytes) else str(r).encode() for r in rows)


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
        "tokenizer": [repr(tokenizer), tokenizer.version],
    }
    return cached(
        f"{dataset}-{type(tokenizer).__name__}",
        fingerprint,
        lambda: tokenize(tokenizer, read_splits(dataset)),
        [*dataset.shards["train"], *dataset.shards.get(held_out or "", ())],
    )


@functools.cache
def _load(source: TFDSText, folder: Path) -> TextDataset:
    return to_device(_tokens(source, folder))
