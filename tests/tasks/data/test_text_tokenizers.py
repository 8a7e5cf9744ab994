"""Tokenizers: exact both ways, learned from the training text alone, deterministic."""

import collections
import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from tasks.data import tokenizers
from tasks.data.tokenizers import BytePairs, Bytes, tokenize

PROSE = (
    "The quick brown fox's den isn't far; the other foxes' dens are farther.\n"
    "    def quick(self, other):\n\n\n        return 42 + self.brown(other)  # then\n"
) * 40
STRANGE = (
    "naïve café — 漢字かな 🦊\r\n\ttabs\x00nul\x1c\u3000wide\u00a0hard\u0085next\u2028"
    "\n\n \n  e\u0301 vs \u00e9, \ufeff bom \U0001f1eb\U0001f1f7\n\n"
)


@pytest.fixture(scope="module")
def learned():
    return BytePairs(300).learn(PROSE.encode())


def merges(learned):
    return [tuple(pair) for pair in json.loads(learned.tobytes())["model"]["merges"]]


@pytest.mark.parametrize("text", [PROSE, STRANGE, PROSE + STRANGE, "", "\n", " "])
@pytest.mark.parametrize("tokenizer", [Bytes(), BytePairs(300)])
def test_decoding_gives_back_the_text(tokenizer, text, learned):
    state = learned if isinstance(tokenizer, BytePairs) else tokenizer.learn(b"")
    tokens = tokenizer.encode(state, text.encode())
    assert tokenizer.decode(state, tokens) == text
    assert tokens.ndim == 1 and tokens.dtype.itemsize == 1 + (tokenizer != Bytes())
    assert not len(tokens) or tokens.max() < tokenizer.vocab_size


def test_bytes_are_the_bytes_whatever_they_are():
    content = bytes(range(256)) * 2
    tokens = Bytes().encode(Bytes().learn(b""), content)
    assert tokens.tobytes() == content
    assert "�" in Bytes().decode(tokens, tokens)


def test_half_a_character_is_shown_and_not_an_error(learned):
    half = "漢".encode()[:2]
    assert Bytes().decode(learned, np.frombuffer(half, np.uint8)) == "�"
    tokens = BytePairs(300).encode(learned, "漢".encode())[:-1]
    assert set(BytePairs(300).decode(learned, tokens)) == {"�"}


def test_the_vocabulary_has_every_byte_and_the_merges(learned):
    model = json.loads(learned.tobytes())["model"]
    assert len(model["vocab"]) == 300 and len(model["merges"]) == 300 - 256
    assert sorted(model["vocab"].values()) == list(range(300))


def test_merged_is_always_the_most_frequent_pair_of_the_training_text(learned):
    """Against a plain count of pairs within words; ties may be broken either way."""
    pattern = r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]+|\s+(?!\S)|\s+"
    printable = {" ": "Ġ", "\n": "Ċ"}
    words = collections.Counter(
        tuple(printable.get(c, c) for c in word) for word in re.findall(pattern, PROSE)
    )
    for pair in merges(learned):
        counts = collections.Counter()
        for word, count in words.items():
            for i in range(len(word) - 1):
                counts[word[i : i + 2]] += count
        assert counts[pair] == max(counts.values()) >= 2
        words = collections.Counter(
            {merge(word, pair): count for word, count in words.items()}
        )


def merge(word, pair):
    out = []
    for symbol in word:
        # From the left: of "aaa" the first two are merged.
        if out and not isinstance(out[-1], list) and (out[-1], symbol) == pair:
            out[-1] = ["".join(pair)]
        else:
            out.append(symbol)
    return tuple(s[0] if isinstance(s, list) else s for s in out)


def test_pairs_compress_the_training_text(learned):
    for vocab_size, least in ((300, 2.0), (317, 3.0)):
        tokenizer = BytePairs(vocab_size)
        state = tokenizer.learn(PROSE.encode())
        assert least * len(tokenizer.encode(state, PROSE.encode())) < len(PROSE)


def test_nothing_is_learned_from_held_out_text():
    parts = {"train": PROSE.encode(), "test": b"zq zq zq zq zq zq " * 1000}
    one = tokenize(BytePairs(300), parts)
    other = tokenize(BytePairs(300), parts | {"test": STRANGE.encode() * 99})
    np.testing.assert_array_equal(one["learned"], other["learned"])
    np.testing.assert_array_equal(one["train"], other["train"])
    assert ("z", "q") not in merges(one["learned"])
    swapped = {"train": parts["test"] + parts["train"], "test": b""}
    assert ("z", "q") in merges(tokenize(BytePairs(300), swapped)["learned"])


def test_a_long_text_has_the_tokens_of_its_pieces(learned, monkeypatch):
    """Cutting into pieces does not change tokens."""
    text = (PROSE + STRANGE) * 3
    tokenizer = BytePairs(300)
    whole = tokenizer.encode(learned, text.encode())
    monkeypatch.setattr(tokenizers, "_PIECE", 50)
    assert len(list(tokenizers._pieces(text))) > 100
    assert "".join(tokenizers._pieces(text)) == text
    np.testing.assert_array_equal(tokenizer.encode(learned, text.encode()), whole)
    np.testing.assert_array_equal(tokenizer.learn(PROSE.encode()), learned)


CODE = """
import hashlib, sys
from tasks.data.tokenizers import BytePairs
text = sys.stdin.buffer.read()
learned = BytePairs(310).learn(text)
tokens = BytePairs(310).encode(learned, text)
print(hashlib.sha256(learned.tobytes() + tokens.tobytes()).hexdigest())
"""


def test_another_process_learns_the_same():
    text = (PROSE + STRANGE).encode()
    learned = BytePairs(310).learn(text)
    tokens = BytePairs(310).encode(learned, text)
    env = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", CODE], input=text, capture_output=True, env=env
    )
    want = hashlib.sha256(learned.tobytes() + tokens.tobytes()).hexdigest()
    assert out.stdout.decode().strip() == want, out.stderr.decode()


@pytest.mark.parametrize("size", [-1, 0, 256, (1 << 20) + 1])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match=f"vocab_size = {size} must be 257…1048576"):
        BytePairs(size)


def test_more_merges_than_the_text_has_are_refused_with_what_it_has():
    text = PROSE.encode()
    message = f"vocab_size = 5000 is too large: .* {len(text)} bytes has .* tokens only"
    with pytest.raises(ValueError, match=message) as error:
        BytePairs(5000).learn(text)
    most = int(re.findall(r"for (\d+) tokens", str(error.value))[0])
    assert len(BytePairs(most).learn(text)) > 0
    with pytest.raises(ValueError, match=f"for {most} tokens only"):
        BytePairs(most + 1).learn(text)


def test_text_that_is_not_utf_8_is_refused():
    with pytest.raises(ValueError, match="needs UTF-8 text, but byte 2 is not"):
        BytePairs().learn(b"ab\xff")


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([[1, 2]], r"shape \(1, 2\) .* must be one row of integers"),
        ([0.5], "type float64 must be one row of integers"),
        ([0, 300], "tokens 0…300 must be 0…299"),
        ([-1, 3], "tokens -1…3 must be 0…299"),
    ],
)
def test_what_is_no_token_is_refused(learned, tokens, message):
    with pytest.raises(ValueError, match=message):
        BytePairs(300).decode(learned, np.array(tokens))


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install tokenizers==0\.23\.3$"):
        BytePairs().learn(PROSE.encode())
