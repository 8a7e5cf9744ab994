"""`max_bytes`: the text that is kept, and the files that are read."""

import itertools
import os

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")

from configuration import digests
from tasks.base import SPLITS
from tasks.data import cache, prepared
from tasks.data.cutting import cut, end_within
from tasks.data.tfds_text import TFDSText
from tasks.data.tokenizers import BytePairs, load_tokens

NUM, SHARDS = 300, 3
HEAD = "docs-train.array_record-0000{}-of-00003"


def document(split, row):
    """Some 36 bytes in two lines."""
    return f"{split} {row:03d} says ä {row * 7919 % 997:03d}\nand then no more"


def joined(split, num=NUM):
    return "\n".join(document(split, row) for row in range(num)).encode()


@pytest.fixture(scope="module")
def write(prepare):
    import tensorflow_datasets as tfds

    def write(folder, rows, **options):
        features = {"text": tfds.features.Text(), "url": tfds.features.Text()}
        rows = {
            split: [{"text": text, "url": "u"} for text in texts]
            for split, texts in rows.items()
        }
        return prepare(folder, rows, "docs", features, **options)

    return write


@pytest.fixture
def docs(write, tmp_path, monkeypatch):
    """300 documents in 3 files to train on, 100 in another 3 to test."""
    forget()
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    rows = {
        split: [document(split, row) for row in range(num)]
        for split, num in (("train", NUM), ("test", NUM // 3))
    }
    return write(tmp_path, rows, shards=SHARDS)


def forget():
    load_tokens.cache_clear()


def load(max_bytes=None):
    forget()
    dataset = TFDSText("docs", max_bytes=max_bytes).load()
    return [np.asarray(dataset.split(split)).tobytes() for split in SPLITS]


def flip(path, where):
    """Changes a byte of a record; size and time are as before."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    occupied = np.flatnonzero(np.frombuffer(bytes(content), np.uint8))
    content[occupied[int(where * len(occupied))]] ^= 4
    path.write_bytes(content)
    return stat


@pytest.mark.parametrize("limit", [1000, 1033, 4999, 5000, 10_000])
def test_a_limit_takes_the_beginning_and_a_tenth_of_it_to_test(limit, docs):
    parts = load(limit)
    train = b"".join(parts[:3])
    assert joined("train").startswith(train) and train.endswith(b"\n")
    assert limit - 40 < len(train) <= limit
    assert joined("test").startswith(parts[3])
    assert limit // 10 - 40 < len(parts[3]) <= limit // 10
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=False):
        assert abs(len(part) - share * len(train)) <= 40  # a document
        part.decode()


@pytest.mark.parametrize("limit", [len(joined("train")), 10**6, 10**15])
def test_a_limit_that_is_not_reached_changes_nothing(limit, docs):
    assert load(limit) == load(None)
    assert b"".join(load(limit)[:3]) == joined("train")
    assert load(limit)[3] == joined("test", NUM // 3)


def test_one_byte_less_than_all_is_a_limit(docs):
    parts = load(len(joined("train")) - 1)
    assert b"".join(parts[:3]) == joined("train").removesuffix(b"and then no more")
    assert len(parts[3]) <= len(joined("train")) // 10 < len(joined("test", NUM // 3))


def test_no_document_is_in_two_splits(docs):
    whole = b"\n".join([joined("train"), joined("test", NUM // 3)]).split(b"\n")
    for limit in (None, 4000):
        parts = [part.removesuffix(b"\n").split(b"\n") for part in load(limit)]
        for part, after in itertools.pairwise(parts[:3]):
            assert len(part) % 2 == 0 and b" says " in after[0]  # two lines each
        firsts = [line for part in parts for line in part if b" says " in line]
        assert len(firsts) == len(set(firsts)) and set(firsts) <= set(whole)
        if limit is None:
            assert len(firsts) == NUM + NUM // 3


def test_files_behind_the_limit_are_not_read(docs):
    for shard in (HEAD.format(1), HEAD.format(2)):
        flip(docs / shard, 0.5)
    one = len(joined("train", NUM // SHARDS))
    assert b"".join(load(one)[:3]) == joined("train", NUM // SHARDS)
    with pytest.raises(ValueError, match=HEAD.format(1) + " cannot be read"):
        load(one + 1)


def test_a_file_that_is_needed_is_verified_to_its_end(docs, monkeypatch):
    monkeypatch.setattr(prepared, "_RECORDS_AT_ONCE", 10)
    flip(docs / HEAD.format(0), 0.75)
    with pytest.raises(ValueError, match=HEAD.format(0) + " cannot be read"):
        load(1000)  # a quarter of that file


def test_the_cache_compares_only_the_files_that_were_read(docs, monkeypatch):
    first = load(1000)
    hashed, digest = [], digests.of_file
    spy = lambda p: hashed.append(p.name) or digest(p)  # noqa: E731
    monkeypatch.setattr(digests, "of_file", spy)
    for index in range(3):
        os.utime(docs / HEAD.format(index), ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "read", None)
        assert load(1000) == first
    assert HEAD.format(0) in hashed
    assert not {HEAD.format(1), HEAD.format(2)} & set(hashed)
    flip(docs / HEAD.format(0), 0.5)
    with (
        pytest.warns(UserWarning, match=HEAD.format(0) + " has changed"),
        pytest.raises(ValueError, match="cannot be read"),
    ):
        load(1000)


def test_every_limit_has_tokens_of_its_own(docs):
    sizes = [sum(map(len, load(limit))) for limit in (1000, 2000, None, 3000)]
    assert len(set(sizes)) == 4
    assert [sum(map(len, load(limit))) for limit in (1000, 2000, None, 3000)] == sizes


@pytest.mark.parametrize("limit", [0, -1, 999, True, 5000.0, "5000", float("inf")])
def test_a_limit_that_cannot_be_one_is_refused_at_once(limit):
    with pytest.raises(ValueError, match=r"max_bytes = .* must be a whole num"):
        TFDSText("docs", max_bytes=limit)


def test_a_limit_without_a_test_split_cuts_train_in_four(write, tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    write(tmp_path, {"train": [document("train", row) for row in range(NUM)]})
    parts = load(5000)
    assert joined("train").startswith(b"".join(parts))
    for part, share in zip(parts, (0.7, 0.1, 0.1, 0.1), strict=True):
        assert abs(len(part) - share * 5000) <= 80


def raw(write, folder, monkeypatch, rows, **others):
    monkeypatch.setenv(prepared.VARIABLE, str(folder))
    monkeypatch.setenv(cache.VARIABLE, str(folder / "cache"))
    write(folder, {"train": rows, **others})
    forget()


def test_empty_rows_are_empty_lines(write, tmp_path, monkeypatch):
    rows = ["", *(f"line {row}" if row % 3 else "" for row in range(60)), ""]
    raw(write, tmp_path, monkeypatch, rows, test=["", "held out"])
    parts = load()
    assert b"".join(parts[:3]) == "\n".join(rows).encode()
    assert parts[3] == b"\nheld out"


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [
        (["", ""], ["text"], "inner_valid"),
        ([""], ["text"], "train"),
        (["all in one line"], ["text"], None),
        (["one line\n"], ["text"], "inner_valid"),
        (["a line"] * 30, [""], "test"),
    ],
)
def test_a_split_without_text_is_refused(
    train, test, split, write, tmp_path, monkeypatch
):
    raw(write, tmp_path, monkeypatch, train, test=test)
    if split is None:
        assert [len(part) for part in load()] == [12, 2, 1, 4]
        return
    with pytest.raises(ValueError, match=f"'docs:1.0.0' has no text .*{split}") as e:
        load()
    assert "\n" not in str(e.value)


def test_bytes_that_are_not_utf_8_are_kept_as_they_are(write, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    rows = [random.integers(128, 256, 40, np.uint8).tobytes() for _ in range(200)]
    raw(write, tmp_path, monkeypatch, rows, test=[b"\xff\xfe"])
    parts = load()
    assert b"".join(parts[:3]) == b"\n".join(rows) and parts[3] == b"\xff\xfe"
    assert b"".join(load(4000)[:3]) == b"\n".join(rows)[: 97 * 41]
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match="': BytePairs needs UTF-8 text") as e:
        TFDSText("docs", BytePairs(300)).load()
    assert "\n" not in str(e.value)


def test_cuts_move_to_the_end_of_a_row_if_it_is_near():
    rows = [b"a line\nanother\nand %03d" % row for row in range(100)]
    text, ends = b"\n".join(rows), []
    for row in rows[:-1]:
        ends.append((ends[-1] if ends else 0) + len(row) + 1)
    parts = cut(text, (0.705, 0.805, 0.905), ends)
    assert b"".join(parts) == text
    assert [part.count(b"a line") for part in parts] == [71, 10, 10, 9]
    assert all(part.startswith(b"a line") for part in parts)
    # One that is farther away than 2 % of the text counts as none.
    far = cut(text, (0.5,), [100, 1300])
    assert far == cut(text, (0.5,)) and len(far[0]) < 1300


def test_a_limit_in_a_long_line_cuts_no_character():
    text = ("漢字🦊é" * 5000).encode()
    for limit in range(20_000, 20_020):
        end = end_within(text, limit)
        assert limit - 4 < end <= limit
        text[:end].decode()
    assert end_within(b"\x80" * 5000, 1000) == 997  # no character at all
    assert end_within(b"ab\ncd\nef", 5) == 3 and end_within(b"ab\ncd\nef", 6) == 6


def test_a_text_of_one_row_is_limited_at_a_line(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(data_dir("tiny_shakespeare").parent))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    dataset = TFDSText("tiny_shakespeare", max_bytes=100_000).load()
    sizes = [len(dataset.split(split)) for split in SPLITS]
    for size, want in zip(sizes, (80_000, 10_000, 10_000, 10_000), strict=True):
        assert abs(size - want) < 100
