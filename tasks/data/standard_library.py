"""Text that every installation has: the source code of Python's standard library."""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
from pathlib import Path

import numpy as np

from configuration.fields import configuration
from tasks.base import SPLITS, Split
from tasks.data.cache import cached
from tasks.data.text import Text, TextDataset, to_device
from tasks.data.tokenizers import Bytes, Tokenizer, tokenize

SEPARATOR = b"\0"
"""Between two files: a byte that Python source cannot contain."""

PACKAGES = (
    "asyncio",
    "collections",
    "concurrent",
    "email",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "re",
    "unittest",
    "urllib",
    "xml",
    "xmlrpc",
    "zoneinfo",
)
"""Packages that distributions never leave out, beside the modules of one file."""

_SHARES: dict[Split, float] = {
    "train": 0.72,
    "inner_valid": 0.09,
    "outer_valid": 0.09,
    "test": 0.10,
}


@configuration
class StandardLibrary(Text):
    """The source code of Python's standard library: some 7 MB, in four splits.

    A file belongs to one split, by a hash of its name alone: about 72 % of the files
    are train, 9 % each inner_valid and outer_valid, 10 % test. Files stand in the order
    of their names with `SEPARATOR` between them, so windows may cross files, but never
    splits.

    The text is that of the running Python, so it differs between versions (and
    distributions may patch it): figures are comparable where `fingerprint()` agrees.

    Licence: PSF License Version 2.
    """

    tokenizer: Tokenizer = Bytes()
    """What makes tokens of the text; it learns from train alone."""

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self.tokenizer.vocab_size

    def num_bytes(self) -> int | None:
        """Returns the bytes of the tokens; None if a tokenizer must learn first."""
        return super().num_bytes() if isinstance(self.tokenizer, Bytes) else None

    def load(self) -> TextDataset:
        """The dataset as device arrays (read once per process)."""
        return _load(self)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens `[n]`, for inspection."""
        return self.tokenizer.decode(_tokens(self)["learned"], tokens)

    def fingerprint(self) -> str:
        """A digest of the names and contents of all files, in hexadecimal digits."""
        digest = hashlib.sha256()
        for name, content in read_files().items():
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()


def split_of(name: str) -> Split:
    """The split of the file of that name, such as `"json/decoder.py"`."""
    digest = hashlib.sha256(name.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in _SHARES.items():
        position -= share
        if position < 0:
            return split
    return "test"


@functools.cache
def read_files() -> dict[str, bytes]:
    """Contents of the chosen files by name, in the order of names.

    Chosen are the modules of one file and those in `PACKAGES`, without tests, and
    without what an installation adds (`sys.stdlib_module_names` knows the others).

    Raises:
        ValueError: if the standard library has no source files (some installations
            have compiled ones only).
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in root.glob("*.py") if path.stem in sys.stdlib_module_names]
    for package in PACKAGES:
        paths += (root / package).rglob("*.py")
    names = {path.relative_to(root).as_posix(): path for path in paths}
    files = {
        name: names[name].read_bytes()
        for name in sorted(names)
        if not {"test", "tests"} & set(name.split("/"))
    }
    if not files:
        raise ValueError(
            f"the standard library in {root} has no source files "
            "(*.py): choose another source of text"
        )
    return files


def read_splits() -> dict[Split, bytes]:
    """The text of each split."""
    parts: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
    for name, content in read_files().items():
        parts[split_of(name)].append(content)
    return {split: SEPARATOR.join(contents) for split, contents in parts.items()}


@functools.cache
def _tokens(source: StandardLibrary) -> dict[str, np.ndarray]:
    tokenizer, texts = source.tokenizer, read_splits()
    if isinstance(tokenizer, Bytes):  # quicker made than read from a cache
        return tokenize(tokenizer, texts)
    digests = {split: hashlib.sha256(text).hexdigest() for split, text in texts.items()}
    return cached(
        f"standard-library-{type(tokenizer).__name__}",
        {"texts": digests, "tokenizer": [repr(tokenizer), tokenizer.version]},
        lambda: tokenize(tokenizer, texts),
    )


@functools.cache
def _load(source: StandardLibrary) -> TextDataset:
    return to_device(_tokens(source))
