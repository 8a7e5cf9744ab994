"""The source code of Python's standard library, as text of any installation."""

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
from tasks.data.tokenizers import Bytes, TokenizedText, Tokenizer, tokenize

SEPARATOR = b"\0"
"""Separates files: a byte that Python source cannot contain."""

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
"""Packages that no distribution leaves out, beside the single-file modules."""

_SHARES = dict(zip(SPLITS, (0.72, 0.09, 0.09, 0.10), strict=True))


@configuration
class StandardLibrary(TokenizedText):
    """The source code of Python's standard library: some 7 MB, in four splits.

    A hash of its name assigns each file to a split: about 72 % of the files to train,
    9 % each to inner_valid and outer_valid, 10 % to test. Files are joined by
    `SEPARATOR` in the order of their names, so windows may cross files but not splits.

    The text is that of the running Python, which differs between versions and
    distributions: results are comparable where `content()` agrees.

    Licence: PSF License Version 2.
    """

    tokenizer: Tokenizer = Bytes()
    """Tokenizer of the text; it learns from train alone."""

    def num_bytes(self) -> int | None:
        """Returns the bytes of the tokens; None if a tokenizer must learn first."""
        return super().num_bytes() if isinstance(self.tokenizer, Bytes) else None

    def read_tokens(self) -> dict[str, np.ndarray]:
        """Reads the tokens of each split (see `TokenizedText.read_tokens`)."""
        tokenizer, texts = self.tokenizer, read_splits()
        # Bytes are faster to make than to read from the cache.
        if isinstance(tokenizer, Bytes):
            return tokenize(tokenizer, texts)
        digests = {
            name: hashlib.sha256(text).hexdigest() for name, text in texts.items()
        }
        return cached(
            f"standard-library-{type(tokenizer).__name__}",
            {"texts": digests, "tokenizer": [repr(tokenizer), tokenizer.version]},
            lambda: tokenize(tokenizer, texts),
        )

    def content(self) -> str:
        """Returns a hexadecimal digest of the names and contents of all files."""
        digest = hashlib.sha256()
        for name, content in read_files().items():
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()


def split_of(name: str) -> Split:
    """Returns the split of a file such as `"json/decoder.py"`."""
    digest = hashlib.sha256(name.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in _SHARES.items():
        position -= share
        if position < 0:
            return split
    return "test"


@functools.cache
def read_files() -> dict[str, bytes]:
    """Reads the contents of all files by name, in the order of names.

    These are the single-file modules of `sys.stdlib_module_names` and the files of
    `PACKAGES`, without tests.

    Raises:
        ValueError: if the installation has compiled files only.
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
    """Reads the text of each split."""
    parts: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
    for name, content in read_files().items():
        parts[split_of(name)].append(content)
    return {split: SEPARATOR.join(contents) for split, contents in parts.items()}
