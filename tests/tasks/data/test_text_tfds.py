"""Text of prepared datasets: splits and refusals."""

import shutil

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")

from tasks.base import SPLITS
from tasks.data import cache, prepared, tfds_text
from tasks.data.cutting import cut
from tasks.data.declared import Feature, Prepared
from tasks.data.tfds_text import TFDSText
from tasks.data.tokenizers import BytePairs, load_tokens


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    load_tokens.cache_clear()


def rows_of(name, split):
    return [row["text"] for row in prepared.read(prepared.open_dataset(name), split)]


@pytest.mark.parametrize(
    "name, train, test",
    [("tiny_shakespeare", 1_003_854, 55_770), ("wikitext2_small", 1_881_793, 242_139)],
)
def test_sizes_and_order_of_the_real_datasets(data_dir, name, train, test):
    data_dir(name)
    data = TFDSText(name).load()
    parts = [np.asarray(data.split(split)).tobytes() for split in SPLITS]
    assert sum(map(len, parts[:3])) == train and len(parts[3]) == test
    (whole,) = rows_of(name, "train")
    assert b"".join(parts[:3]) == whole and [parts[3]] == rows_of(name, "test")
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=False):
        assert abs(len(part) / train - share) < 0.001
        part.decode()
    assert parts[0].endswith(b"\n") and parts[1].endswith(b"\n")


def test_tiny_shakespeare_is_learned_from_its_train_part_alone(data_dir):
    pytest.importorskip("tokenizers")
    data_dir("tiny_shakespeare")
    source = TFDSText("tiny_shakespeare", BytePairs(512))
    plain = TFDSText("tiny_shakespeare").load()
    data = source.load()
    texts = [np.asarray(plain.split(split)).tobytes() for split in SPLITS]
    learned = source.tokenizer.learn(texts[0])
    assert len(data.train) < 0.62 * len(texts[0])
    for split, text in zip(SPLITS[1:], texts[1:], strict=True):
        tokens = np.asarray(data.split(split))
        assert tokens.dtype == np.uint16
        np.testing.assert_array_equal(source.tokenizer.encode(learned, text), tokens)
        assert source.decode(tokens).encode() == text
    assert "shakespeare" in str(list(cache.cache_dir().iterdir()))


def test_a_second_process_finds_the_tokens_in_the_cache(data_dir, monkeypatch):
    data_dir("tiny_shakespeare")
    first = TFDSText().load()
    assert TFDSText("tiny_shakespeare:1.0.0").load().train.shape == first.train.shape
    load_tokens.cache_clear()
    monkeypatch.setattr(prepared, "read", None)  # would fail if it were called
    again = TFDSText().load()
    np.testing.assert_array_equal(again.train, first.train)
    np.testing.assert_array_equal(again.test, first.test)


def test_a_damaged_shard_is_refused_whether_cached_or_not(
    data_dir, monkeypatch, tmp_path
):
    source = data_dir("tiny_shakespeare")
    shutil.copytree(source, tmp_path / "tiny_shakespeare")
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    shard = next(tmp_path.glob("tiny*/*/*-train.array_record*"))
    TFDSText().load()
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for _ in range(2):
        load_tokens.cache_clear()
        with pytest.raises(
            ValueError, match=r"tiny_shakespeare.*cannot be read"
        ) as error:
            TFDSText().load()
        assert "\n" not in str(error.value)


def test_what_is_loaded_is_of_the_folder(data_dir, monkeypatch, tmp_path):
    data_dir("tiny_shakespeare")
    TFDSText().load()
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match="'tiny_shakespeare' is not in"):
        TFDSText().load()


def test_a_dataset_without_text_is_refused_with_its_features(data_dir):
    data_dir("mnist")
    message = r"no text feature 'text'; its features are image \(image\), label"
    with pytest.raises(ValueError, match=message):
        TFDSText("mnist").load()


def declare(monkeypatch, **splits):
    """A prepared dataset whose splits hold the given rows."""
    dataset = Prepared(
        name="letters",
        version="1.0.0",
        path=None,
        features={"text": Feature("text")},
        splits={name: len(rows) for name, rows in splits.items()},
        shards={name: () for name in splits},
        shard_lengths={name: (len(rows),) for name, rows in splits.items()},
        declared=(),
    )

    def read(_, split):
        return iter({"text": row} for row in splits[split])

    monkeypatch.setattr(prepared, "read", read)
    return dataset


LINES = b"".join(b"line %03d\n" % i for i in range(100))


def test_validation_stands_in_for_a_missing_test_split(monkeypatch):
    dataset = declare(monkeypatch, train=[LINES], validation=[b"held", "öut"])
    parts = tfds_text.read_splits(dataset).texts
    assert list(parts) == list(SPLITS)
    assert [len(parts[split]) for split in SPLITS[:3]] == [720, 90, 90]
    assert parts["train"] + parts["inner_valid"] + parts["outer_valid"] == LINES
    assert parts["test"] == "held\nöut".encode()


def test_a_test_split_is_test_and_validation_is_then_unused(monkeypatch):
    dataset = declare(
        monkeypatch, train=[LINES[:450], LINES[450:-1]], test=[b"t"], validation=[b"v"]
    )
    parts = tfds_text.read_splits(dataset).texts
    assert parts["test"] == b"t"
    joined = parts["train"] + parts["inner_valid"] + parts["outer_valid"]
    assert joined == LINES[:450] + b"\n" + LINES[450:-1]


def test_with_train_alone_all_four_splits_are_parts_of_it(monkeypatch):
    parts = tfds_text.read_splits(declare(monkeypatch, train=[LINES])).texts
    assert b"".join(parts[split] for split in SPLITS) == LINES
    assert [len(parts[split]) for split in SPLITS] == [630, 90, 90, 90]


def test_no_train_split_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="has no split 'train'; there are test"):
        tfds_text.read_splits(declare(monkeypatch, test=[LINES]))


def test_cuts_stand_at_line_ends_and_lose_nothing():
    for num in range(101):
        text = LINES[: 9 * num]
        parts = cut(text, (0.7, 0.8, 0.9))
        assert len(parts) == 4 and b"".join(parts) == text
        assert all(part.endswith(b"\n") for part in parts[:3] if part)


def test_without_line_ends_no_character_is_cut():
    text = ("漢字🦊é" * 5000).encode()
    parts = cut(text, (0.801, 0.9001))
    assert b"".join(parts) == text
    assert abs(len(parts[0]) / len(text) - 0.801) < 1e-4
    for part in parts:
        part.decode()


@pytest.mark.parametrize("name", ["", "two words", "wikitext2_small/1.0.0"])
def test_a_name_that_cannot_be_one_is_refused_at_once(name):
    with pytest.raises(ValueError, match=f"dataset name '{name}'"):
        TFDSText(name)


def test_constructing_needs_no_folder(monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, "/nowhere")
    assert TFDSText("not_there").vocab_size == 256
    assert TFDSText("not_there", BytePairs(300)).vocab_size == 300
    with pytest.raises(ValueError, match="/nowhere is not a folder of datasets"):
        TFDSText("not_there").load()
