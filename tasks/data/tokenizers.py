"""Tokenizers: text to integers and back.

A tokenizer is a description. What it learns from the training text, such as merges, is
an array that is passed as an argument and stored with the tokens, so nothing is learned
from held-out text.
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
from tasks.data.text import Text, TextDataset, to_device, token_dtype
from tasks.source import kept

_MISSING = (
    "BytePairs needs the package tokenizers, which is not installed: "
    "pip install tokenizers==0.23.3"
)
_NOTHING = np.zeros(0, np.uint8)
# Text is encoded in pieces: all at once takes 200 bytes of memory per byte.
_PIECE = 1 << 16
_BOUNDARY = re.compile(r"(?<=\S)\n(?=\S)")


class Tokenizer(abc.ABC):
    """Text to tokens and back: a frozen dataclass."""

    vocab_size: int
    """Number of different tokens, 0…`vocab_size`-1: a field or a property."""

    version: str
    """Version of everything beside the fields that determines the tokens."""

    @abc.abstractmethod
    def learn(self, text: bytes) -> np.ndarray:
        """Learns from the training text; returns `[m]` uint8."""

    @abc.abstractmethod
    def encode(self, learned: np.ndarray, text: bytes) -> np.ndarray:
        """Returns the tokens of a text, `[n]` of `token_dtype(vocab_size)`."""

    @abc.abstractmethod
    def decode(self, learned: np.ndarray, tokens: np.ndarray) -> str:
        """Returns the text of tokens `[n]`; bytes that are not UTF-8 become U+FFFD."""


@configuration
class Bytes(Tokenizer):
    """Every byte is a token."""

    vocab_size = 256
    version = ""

    def learn(self, text: bytes) -> np.ndarray:
        """Learns nothing."""
        del text
        return _NOTHING

    def encode(self, learned: np.ndarray, text: bytes) -> np.ndarray:
        """Returns the bytes of the text."""
        del learned
        return np.frombuffer(text, np.uint8)

    def decode(self, learned: np.ndarray, tokens: np.ndarray) -> str:
        """Returns the text of bytes (see `Tokenizer.decode`)."""
        del learned
        tokens = _checked(tokens, self.vocab_size)
        return tokens.astype(np.uint8).tobytes().decode(errors="replace")


@configuration
class BytePairs(Tokenizer):
    """Byte-level byte-pair encoding.

    Merges are learned from the training text, the most frequent pair first while it
    occurs twice; they never cross words in the sense of GPT-2. The text must be UTF-8.
    All 256 bytes are tokens, so every text can be encoded.

    Reference: Sennrich et al. (2016), arXiv:1508.07909; Radford et al. (2019),
    "Language Models are Unsupervised Multitask Learners", Section 2.2.
    """

    vocab_size: int = 1024
    """Number of tokens: 256 bytes, and merges."""

    def __post_init__(self) -> None:
        if not 257 <= self.vocab_size <= 1 << 20:
            raise ValueError(
                f"vocab_size = {self.vocab_size} must be 257…{1 << 20}: 256 bytes and "
                "at least one merge"
            )

    @property
    def version(self) -> str:
        """Version of the library that learns the merges."""
        try:
            return importlib.metadata.version("tokenizers")
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(_MISSING) from None

    def learn(self, text: bytes) -> np.ndarray:
        """Learns the merges; returns the library's JSON.

        Raises:
            ValueError: if the text has too few repeated pairs for so many tokens.
        """
        library = _library()
        trainer = library.trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer = library.Tokenizer(library.models.BPE())
        # Words are GPT-2's; nothing is normalized, so nothing is lost.
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
        """Returns the tokens of a UTF-8 text (see `Tokenizer.encode`)."""
        tokenizer, dtype = _restore(learned), token_dtype(self.vocab_size)
        tokens = [np.zeros(0, dtype)]
        for piece in _pieces(_utf8(text)):
            # The fast form leaves out the offsets, which are not used.
            (encoding,) = tokenizer.encode_batch_fast([piece], add_special_tokens=False)
            tokens.append(np.asarray(encoding.ids, dtype))
        return np.concatenate(tokens)

    def decode(self, learned: np.ndarray, tokens: np.ndarray) -> str:
        """Returns the text of tokens (see `Tokenizer.decode`)."""
        tokens = _checked(tokens, self.vocab_size)
        return _restore(learned).decode(tokens.tolist(), skip_special_tokens=False)


class TokenizedText(Text, abc.ABC):
    """A source of text whose tokenizer is a field: a frozen dataclass."""

    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self.tokenizer.vocab_size

    @abc.abstractmethod
    def read_tokens(self) -> dict[str, np.ndarray]:
        """Reads the tokens of each split, and "learned" (see `tokenize`)."""

    def load(self) -> TextDataset:
        """Returns the dataset as device arrays; read once per process and folder.

        Raises:
            ValueError: in one line, if the text is missing or damaged.
        """
        return load_tokens(self)[0]

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of tokens `[n]`, for inspection."""
        return self.tokenizer.decode(load_tokens(self)[1], tokens)


@kept
def load_tokens(
    source: TokenizedText,
) -> tuple[TextDataset, np.ndarray]:
    """Returns the dataset of a source, and what its tokenizer learned."""
    tokens = source.read_tokens()
    return to_device(tokens), tokens["learned"]


def tokenize(
    tokenizer: Tokenizer, texts: Mapping[Split, bytes]
) -> dict[str, np.ndarray]:
    """Returns tokens `[n]` by split, and "learned" `[m]` uint8 from train."""
    learned = tokenizer.learn(texts["train"])
    tokens = {name: tokenizer.encode(learned, text) for name, text in texts.items()}
    return {"learned": learned, **tokens}


def _library() -> Any:
    try:
        import tokenizers
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
    """Cuts a text where the cut does not change its tokens."""
    # A newline between two characters that are not spaces is a word by itself.
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
