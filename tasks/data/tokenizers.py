"""Tokenizers: how text becomes integers, and integers text.

A tokenizer is a description. What it learns from a training text (for byte pairs: the
merges) is an array beside it that travels as an argument, so that it can be stored
with the tokens it made and nothing is learned from held-out text.
"""

from __future__ import annotations

import abc
import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from configuration.fields import configuration
from tasks.base import Split
from tasks.data.text import token_dtype

_MISSING = (
    "BytePairs needs the package tokenizers, which is not installed: "
    "pip install tokenizers==0.23.3"
)
_NOTHING = np.zeros(0, np.uint8)
# A piece bounds the memory of encoding: a whole text at once takes 200 bytes per byte.
_PIECE = 1 << 16
_BOUNDARY = re.compile(r"(?<=\S)\n(?=\S)")


class Tokenizer(abc.ABC):
    """Text to tokens and back: a frozen dataclass."""

    vocab_size: int
    """Number of different tokens, 0…`vocab_size`-1: a field or a property."""

    @property
    @abc.abstractmethod
    def version(self) -> str:
        """What else, beside the fields, determines the tokens."""

    @abc.abstractmethod
    def learn(self, text: bytes) -> np.ndarray:
        """What is to be known of the training text, `[m]` uint8."""

    @abc.abstractmethod
    def encode(self, learned: np.ndarray, text: bytes) -> np.ndarray:
        """The tokens of a text, `[n]` of `token_dtype(vocab_size)`."""

    @abc.abstractmethod
    def decode(self, learned: np.ndarray, tokens: np.ndarray) -> str:
        """The text of tokens `[n]`; bytes that are not UTF-8 are shown as U+FFFD."""


@configuration
class Bytes(Tokenizer):
    """Every byte is a token."""

    @property
    def vocab_size(self) -> int:
        """There are 256 bytes."""
        return 256

    @property
    def version(self) -> str:
        """Nothing else determines the tokens."""
        return ""

    def learn(self, text: bytes) -> np.ndarray:
        """Nothing."""
        del text
        return _NOTHING

    def encode(self, learned: np.ndarray, text: bytes) -> np.ndarray:
        """The bytes of the text."""
        del learned
        return np.frombuffer(text, np.uint8)

    def decode(self, learned: np.ndarray, tokens: np.ndarray) -> str:
        """The text of bytes (see `Tokenizer.decode`)."""
        del learned
        tokens = _checked(tokens, self.vocab_size)
        return tokens.astype(np.uint8).tobytes().decode(errors="replace")


@configuration
class BytePairs(Tokenizer):
    """Bytes, and repeatedly merged pairs of them: byte-level byte-pair encoding.

    Merges are learned from the training text alone, the most frequent pair first, as
    long as it occurs twice; they never cross words in the sense of GPT-2. The text
    must be UTF-8. All 256 bytes are tokens, so every text can be encoded.

    Reference: Sennrich et al. (2016), arXiv:1508.07909; Radford et al. (2019),
    "Language Models are Unsupervised Multitask Learners", Section 2.2.
    """

    vocab_size: int = 1024
    """Number of tokens: 256 bytes, the others merged."""

    def __post_init__(self) -> None:
        if not 257 <= self.vocab_size <= 1 << 20:
            raise ValueError(
                f"vocab_size = {self.vocab_size} must be 257…{1 << 20}: 256 bytes and "
                "at least one merge"
            )

    @property
    def version(self) -> str:
        """The version of the library that learns the merges."""
        try:
            return importlib.metadata.version("tokenizers")
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(_MISSING) from None

    def learn(self, text: bytes) -> np.ndarray:
        """The merges, as the library's JSON.

        Raises:
            ValueError: if the text has too few repeated pairs for so many tokens.
        """
        library = _library()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(alphabet),
        )
        tokenizer = library.Tokenizer(library.models.BPE())
        # The regular expression is GPT-2's; nothing is normalized, so nothing is lost.
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(
            add_prefix_space=False
        )
        tokenizer.decoder = library.decoders.ByteLevel()
        tokenizer.train_from_iterator(_pieces(_utf8(text)), trainer)
        found = tokenizer.get_vocab_size()
        if found != self.vocab_size:
            raise ValueError(
                f"vocab_size = {self.vocab_size} is too large: the training text of "
                f"{len(text)} bytes has repeated pairs for {found} tokens only"
            )
        return np.frombuffer(tokenizer.to_str().encode(), np.uint8)

    def encode(self, learned: np.ndarray, text: bytes) -> np.ndarray:
        """The tokens of a UTF-8 text (see `Tokenizer.encode`)."""
        tokenizer = _restore(learned)
        tokens = [
            # The fast form leaves out the offsets, which are not used.
            np.asarray(encoding.ids, token_dtype(self.vocab_size))
            for piece in _pieces(_utf8(text))
            for encoding in tokenizer.encode_batch_fast(
                [piece], add_special_tokens=False
            )
        ]
        return np.concatenate([np.zeros(0, token_dtype(self.vocab_size)), *tokens])

    def decode(self, learned: np.ndarray, tokens: np.ndarray) -> str:
        """The text of tokens (see `Tokenizer.decode`)."""
        tokens = _checked(tokens, self.vocab_size)
        return _restore(learned).decode(tokens.tolist(), skip_special_tokens=False)


def tokenize(
    tokenizer: Tokenizer, texts: Mapping[Split, bytes]
) -> dict[str, np.ndarray]:
    """The tokens of each text `[n]`, and what was learned from the one named "train".

    Returns:
        The tokens by the name of their text, and "learned" `[m]` uint8.
    """
    learned = tokenizer.learn(texts["train"])
    tokens = {name: tokenizer.encode(learned, text) for name, text in texts.items()}
    return {"learned": learned, **tokens}


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ModuleNotFoundError:
        raise ValueError(_MISSING) from None
    return tokenizers


def _restore(learned: np.ndarray) -> Any:
    return _library().Tokenizer.from_str(learned.tobytes().decode())


def _utf8(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"BytePairs needs UTF-8 text, but byte {error.start} is not: use Bytes()"
        ) from None


def _pieces(text: str) -> Iterator[str]:
    """Cuts a text where the cut does not change its tokens.

    A newline between two characters that are not spaces is a word by itself, whatever
    follows; after several newlines the pattern of words looks ahead.
    """
    start = 0
    for match in _BOUNDARY.finditer(text):
        if match.end() - start >= _PIECE:
            yield text[start : match.end()]
            start = match.end()
    yield text[start:]


def _checked(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"tokens of shape {tokens.shape} and type {tokens.dtype} must be one row "
            "of integers"
        )
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(
            f"tokens {tokens.min()}…{tokens.max()} must be 0…{vocab_size - 1}"
        )
    return tokens
