"""Prepared datasets: opening, reading, and one-line refusals."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pytest

from tasks import TFDSImages
from tasks.data import prepared
from tasks.data.prepared import check_name, open_dataset, read

SHARD = "tiny-train.array_record-00001-of-00003"


@pytest.fixture
def refused():
    """`refused(do, *words)`: `do` fails with one line that has all the words."""

    def check(do, *words):
        with pytest.raises(ValueError) as error:
            do()
        message = str(error.value)
        assert "\n" not in message
        for word in words:
            assert str(word) in message, message

    return check


def read_all(name="tiny", split="train"):
    return list(read(open_dataset(name), split))


def change(path, **values):
    """Sets top-level values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_declared(tiny):
    dataset = open_dataset("tiny")
    assert str(dataset) == "tiny:1.0.0" and dataset.path == tiny
    assert dataset.splits == {"train": 30, "test": 12}
    assert dataset.shard_lengths == {"train": (10, 10, 10), "test": (4, 4, 4)}
    assert dataset.shards["train"][1] == tiny / SHARD
    image, label, note = (dataset.features[k] for k in ("image", "label", "note"))
    assert (image.kind, image.shape, image.dtype) == ("image", (6, 4, 3), "uint8")
    assert (label.kind, label.num_classes) == ("label", 3)
    assert label.names == ("ant", "bee", "cat")
    assert note.kind == "text"
    names = ("dataset_info.json", "features.json", "label.labels.txt")
    assert [path.name for path in dataset.declared] == [*names]


def test_rows_are_those_of_the_source_in_order(tiny, tiny_rows):
    for split, num in (("train", 30), ("test", 12)):
        rows = read_all(split=split)
        want = tiny_rows(split, num)
        assert [row["image"] for row in rows] == [row["image"] for row in want]
        assert [row["label"] for row in rows] == [row["label"] for row in want]
        assert [row["note"].decode() for row in rows] == [row["note"] for row in want]


def test_the_content_follows_every_bit_of_every_file(tiny):
    def content(name="tiny"):
        return TFDSImages(name).content()

    before = content()
    assert content("tiny:1.0.0") == before
    seen, files = {before}, sorted(tiny.iterdir())
    assert len(files) == 9
    for path in files:
        text = path.read_bytes()
        times = path.stat()
        # A blank in JSON, a bit elsewhere: size and times are as before.
        place = text.index(b" ") if path.suffix == ".json" else len(text) - 1
        changed = bytearray(text)
        changed[place] ^= b" "[0] ^ b"\n"[0] if path.suffix == ".json" else 1
        path.write_bytes(changed)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        seen.add(content())
        path.write_bytes(text)
    assert len(seen) == len(files) + 1
    assert content() == before


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("mnist", ("mnist", None)),
        ("mnist:3.0.1", ("mnist", "3.0.1")),
        ("imagenet_resized/32x32", ("imagenet_resized/32x32", None)),
        ("imagenet_resized/32x32:0.1.0", ("imagenet_resized/32x32", "0.1.0")),
        ("cifar10_1/v4", ("cifar10_1/v4", None)),
        ("cifar10_corrupted/fog_1", ("cifar10_corrupted/fog_1", None)),
        ("glue/a.b+c-d", ("glue/a.b+c-d", None)),
    ],
)
def test_names_are_as_tfds_writes_them(name, want):
    assert check_name(name) == want


@pytest.mark.parametrize(
    "name",
    [
        *("", " mnist", "mnist ", "mnist\n", "mnist\0", "two words", "m\u00fcnst"),
        *(
            "..",
            "../mnist",
            "mnist/..",
            "mnist/../x",
            "mnist/.",
            "mnist/...",
            "./mnist",
        ),
        *("/etc/passwd", "/mnist", "mnist/", "mnist//32x32", "mnist/a/b", "~/mnist"),
        *("mnist\\32x32", "C:\\mnist", "mnist:3", "mnist:3.0", "mnist:3.*.*"),
        *("mnist:", "mnist:3.0.1/x", "mnist:../x", "hub:mnist", "3mnist", "-mnist"),
    ],
)
def test_other_names_are_refused(name, refused, tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "data"))
    refused(lambda: open_dataset(name), f"dataset name {name!r}", "name/config:1.2.3")


def test_a_version_after_a_slash_is_said_to_follow_a_colon(refused):
    refused(lambda: check_name("mnist/3.0.1"), "write mnist:3.0.1")


def test_the_folder_is_that_of_the_variable_or_the_default(
    refused, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(prepared.VARIABLE, "~/somewhere")
    assert prepared.data_dir() == tmp_path / "somewhere"
    for unset in (lambda: monkeypatch.setenv(prepared.VARIABLE, ""), None):
        unset() if unset else monkeypatch.delenv(prepared.VARIABLE)
        refused(prepared.data_dir, "set METATRAIN_DATA_DIR or pass --data-dir")
    (tmp_path / "tensorflow_datasets").mkdir()
    assert prepared.data_dir() == tmp_path / "tensorflow_datasets"


def test_a_missing_dataset_is_refused_with_the_command(refused, tiny, monkeypatch):
    root = tiny.parents[1]
    command = f"`tfds build mnist:3.0.1 --file_format=array_record --data_dir={root}`"
    refused(
        lambda: open_dataset("mnist:3.0.1"),
        *("'mnist:3.0.1'", f"not in {root}", "there are tiny;", command),
    )
    refused(lambda: open_dataset("tiny:2.0.0"), "'tiny:2.0.0'", "versions are 1.0.0;")
    refused(lambda: open_dataset("tiny/big"), "'tiny/big'")
    (root / "sizes" / "32x32" / "1.0.0").mkdir(parents=True)
    refused(lambda: open_dataset("sizes"), "'sizes'", "there are sizes/32x32;")
    monkeypatch.setenv(prepared.VARIABLE, str(root / "nowhere"))
    refused(lambda: open_dataset("tiny"), f"{root / 'nowhere'} is not a folder")


def test_the_newest_version_is_so_by_number(tiny):
    for version in ("1.0.9", "1.0.10", "0.9.99"):
        shutil.copytree(tiny, tiny.with_name(version))
    tiny.with_name("1.0.11.incompleteXYZ").mkdir()
    tiny.with_name("9.9.9").write_text("a file")
    assert open_dataset("tiny").version == "1.0.10"
    assert open_dataset("tiny:1.0.9").path.name == "1.0.9"


def remove(path):
    path.unlink()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def cut_the_last_byte(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    content = bytearray(path.read_bytes())
    # The file is padded to blocks: its middle byte of those that say something.
    content[np.flatnonzero(np.frombuffer(bytes(content[:65536]), np.uint8))[500]] ^= 4
    path.write_bytes(content)


def swap(path):
    """Another shard of the same length under its name: rows are there, but fewer."""
    shutil.copy(path.with_name("tiny-test.array_record-00001-of-00003"), path)


@pytest.mark.parametrize(
    "damage", [remove, truncate, cut_the_last_byte, empty, flip, swap]
)
def test_a_damaged_shard_is_refused(damage, tiny, refused):
    damage(tiny / SHARD)
    command = (
        "`tfds build tiny:1.0.0 --file_format=array_record "
        f"--data_dir={tiny.parents[1]} --overwrite`"
    )
    refused(read_all, "'tiny:1.0.0'", tiny / SHARD, command)


def test_a_flipped_bit_changes_no_row_unnoticed(tiny):
    """Whichever bit is flipped, rows are right or the file is refused."""
    shard = tiny / SHARD
    good, want = shard.read_bytes(), read_all()
    random = np.random.default_rng(0)
    occupied = np.flatnonzero(np.frombuffer(good, np.uint8))
    refusals = 0
    for place in random.choice(occupied, 60, replace=False):
        content = bytearray(good)
        content[place] ^= 1 << random.integers(8)
        shard.write_bytes(content)
        try:
            assert read_all() == want
        except ValueError:
            refusals += 1
    assert refusals > 50


@pytest.mark.parametrize("lengths", [["10", "9", "10"], ["10", "11", "10"]])
def test_counts_that_are_not_those_of_the_shard_are_refused(lengths, tiny, refused):
    info = tiny / "dataset_info.json"
    splits = json.loads(info.read_text())["splits"]
    splits[0]["shardLengths"] = lengths
    change(info, splits=splits)
    what = f"10 rows, but dataset_info.json says {lengths[1]}"
    refused(read_all, "'tiny:1.0.0'", tiny / SHARD, what)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe\x00", b"[" * 99999]
)
def test_broken_declarations_are_refused(file, content, tiny, refused):
    (tiny / file).unlink()
    if content is not None:
        (tiny / file).write_bytes(content)
    refused(lambda: open_dataset("tiny"), "'tiny:1.0.0'", tiny, file, "tfds build tiny")


@pytest.mark.parametrize(
    "values",
    [
        {"name": "other"},
        {"splits": "train"},
        {"splits": [{"name": "train", "shardLengths": ["many"]}]},
        {"splits": [{"name": "../train", "shardLengths": ["1"]}]},
        {"splits": [{"name": "a\0b", "shardLengths": ["1"]}]},
        {
            "splits": [
                {"name": "a", "shardLengths": ["1"], "filepathTemplate": "/etc/passwd"}
            ]
        },
    ],
)
def test_declarations_of_something_else_are_refused(values, tiny, refused):
    change(tiny / "dataset_info.json", **values)
    refused(lambda: open_dataset("tiny"), "'tiny:1.0.0'", tiny, "tfds build tiny")


@pytest.mark.parametrize("kind", ["tfrecord", "parquet", "riegeli"])
def test_other_formats_are_refused_with_the_reason(kind, tiny, refused):
    change(tiny / "dataset_info.json", fileFormat=kind)
    convert = (
        f"tfds convert_format --dataset_version_dir={tiny} --out_file_format=array"
    )
    refused(lambda: open_dataset("tiny"), tiny, f"format {kind!r}", convert)


@pytest.mark.parametrize("lengths", [[], ["0"]])
def test_an_empty_split_is_refused(lengths, tiny, refused):
    info = tiny / "dataset_info.json"
    splits = json.loads(info.read_text())["splits"]
    splits[1]["shardLengths"] = lengths
    change(info, splits=splits)
    if lengths:
        shard = "tiny-test.array_record-00000-of-00001"
        shutil.copy(tiny / SHARD, tiny / shard)
    refused(lambda: read_all(split="test"), "'tiny:1.0.0'", "no rows", "'test'")


def test_an_unknown_split_is_refused(tiny, refused):
    refused(lambda: read_all(split="valid"), "no split 'valid'", "train, test")


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record"])
def test_a_missing_package_is_one_line(package, tiny, refused, monkeypatch):
    for name in [n for n in sys.modules if re.match(rf"{package}\b", n)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    refused(read_all, package, "pip install tensorflow-datasets array_record pillow")
