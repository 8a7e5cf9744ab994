"""TFDS images: four splits of real data, and refusals."""

import hashlib
import os
import shutil
import subprocess
import sys
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.data import cache, prepared, tfds_images
from tasks.data.tfds_images import TFDSImages

SHARD = "tiny-train.array_record-00001-of-00003"


def forget():
    """Forgets what this process has read."""
    tfds_images._load.cache_clear()
    tfds_images._columns.cache_clear()


def together(dataset, field, splits=SPLITS):
    return np.concatenate([getattr(dataset.split(s), field) for s in splits])


def test_train_is_cut_along_the_permutation_and_test_is_as_it_is(tiny, tiny_pixels):
    dataset = TFDSImages("tiny").load()
    assert [len(dataset.split(s).labels) for s in SPLITS] == [24, 3, 3, 12]
    order = np.random.RandomState(0).permutation(30)
    pixels, labels = tiny_pixels("train", 30)[order], (np.arange(30) % 3)[order]
    np.testing.assert_array_equal(together(dataset, "images", SPLITS[:3]), pixels)
    np.testing.assert_array_equal(together(dataset, "labels", SPLITS[:3]), labels)
    np.testing.assert_array_equal(dataset.test.images, tiny_pixels("test", 12))
    np.testing.assert_array_equal(dataset.test.labels, np.arange(12) % 3)
    assert dataset.train.images.dtype == jnp.uint8
    assert dataset.train.labels.dtype == jnp.int32
    exact = pixels[:24].astype(float)
    np.testing.assert_allclose(dataset.mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, exact.std((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("others", "want"),
    [
        ({"validation": 5}, [24, 3, 3, 5]),
        ({"validation": 5, "test": 4}, [24, 3, 3, 4]),
        ({}, [21, 3, 3, 3]),
        ({"unsupervised": 5}, [21, 3, 3, 3]),
    ],
)
def test_validation_or_a_part_of_train_stands_in_for_test(
    others, want, prepare, tiny_rows, tiny_pixels, tmp_path, monkeypatch
):
    splits = {"train": 30, **others}
    prepare(tmp_path, {name: tiny_rows(name, num) for name, num in splits.items()})
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    dataset = TFDSImages("tiny").load()
    assert [len(dataset.split(s).labels) for s in SPLITS] == want
    used = next((s for s in ("test", "validation") if s in others), None)
    pixels = tiny_pixels("train", 30)[np.random.RandomState(0).permutation(30)]
    if used:
        pixels = np.concatenate([pixels, tiny_pixels(used, others[used])])
    np.testing.assert_array_equal(together(dataset, "images"), pixels)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (6, 4, 3)),
        ({"grey": True}, (6, 4, 1)),
        ({"size": 2}, (2, 2, 3)),
        ({"size": 9, "grey": True}, (9, 9, 1)),
    ],
)
def test_shapes_are_known_before_anything_is_read(options, shape, tiny):
    source = TFDSImages("tiny", **options)
    for shard in tiny.glob("*.array_record-*"):
        os.truncate(shard, 0)
    assert source.image_shape == shape and source.num_classes == 3


def test_grey_and_size_are_of_the_images_that_are_kept(tiny, tiny_pixels):
    dataset = TFDSImages("tiny", size=2, grey=True).load()
    assert dataset.test.images.shape == (12, 2, 2, 1)
    luma = tiny_pixels("test", 12) @ [0.299, 0.587, 0.114]
    want = luma.reshape(12, 2, 3, 2, 2).mean((2, 4))
    assert np.abs(np.asarray(dataset.test.images)[..., 0] - want).max() <= 1
    sizes = [p.stat().st_size for p in cache.cache_dir().glob("tiny*/images.npy")]
    assert 128 + 42 * 4 in sizes  # a header, and all rows: small and grey


def test_every_description_has_arrays_of_its_own(tiny):
    sources = [
        TFDSImages("tiny", size, grey)
        for size in (None, 2, 3)
        for grey in (False, True)
    ]
    for _ in range(2):
        for source in sources:
            images = source.load().train.images
            assert images.shape == (24, *source.image_shape)
        forget()


def test_a_description_touches_no_disk(monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, "/nowhere")
    source = TFDSImages("not_there:1.0.0", size=8)
    assert hash(source) == hash(TFDSImages("not_there:1.0.0", 8))
    for use in (source.load, lambda: source.image_shape, lambda: source.num_classes):
        with pytest.raises(ValueError, match="/nowhere is not a folder of datasets"):
            use()


@pytest.mark.parametrize("name", ["../mnist", "", "mnist/3.0.1", "/mnist", "a\0"])
def test_a_name_that_cannot_be_one_is_refused_at_once(name):
    with pytest.raises(ValueError, match="dataset name"):
        TFDSImages(name)


@pytest.mark.parametrize("size", [0, -1, 1025, 10**9])
def test_a_size_out_of_range_is_refused_at_once(size):
    with pytest.raises(ValueError, match=f"size = {size} must be from 1 to 1024"):
        TFDSImages("mnist", size)


def refuse(message, **options):
    with pytest.raises(ValueError, match=message) as error:
        TFDSImages("tiny", **options).load()
    assert "\n" not in str(error.value)


def test_images_of_various_sizes_need_a_size(prepare, encode, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (4, 4 + 4 * (i % 2), 3), "B") for i in range(20)]
    rows = [{"photo": encode(x), "label": i % 2} for i, x in enumerate(pixels)]
    features = {
        "photo": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    prepare(tmp_path, {"train": rows, "test": rows[:2]}, features=features)
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    refuse("'tiny' has images of various sizes: give size")
    dataset = TFDSImages("tiny", size=2).load()
    for image, found in zip(pixels, dataset.test.images, strict=False):
        blocks = image.reshape(2, 2, 2, image.shape[1] // 2, 3)
        means = np.floor(blocks.astype(float).mean((1, 3)) + 0.5)
        np.testing.assert_array_equal(found, means)


def test_rows_that_are_not_image_and_label_are_refused(
    prepare, tiny_rows, tmp_path, monkeypatch
):
    import tensorflow_datasets as tfds

    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    image, label = tfds.features.Image(shape=(6, 4, 3)), tfds.features.ClassLabel
    full = tiny_rows("train", 10)
    keys = {"note": tfds.features.Text(), "image": image}
    rows = [{key: row[key] for key in keys} for row in full]
    prepare(tmp_path, {"train": rows}, features=keys, version="1.0.0")
    refuse(
        r"one image and one label in a row, but has .*image \(image\).*note \(text\)"
    )
    keys = {
        "image": image,
        "fine": label(num_classes=3),
        "coarse": label(num_classes=3),
    }
    rows = [{"image": r["image"], "fine": 0, "coarse": 1} for r in full]
    prepare(tmp_path, {"train": rows}, features=keys, version="2.0.0")
    forget()
    refuse(r"but has .*coarse \(label\)")
    keys = {**keys, "label": label(num_classes=7)}
    rows = [{**row, "label": 5} for row in rows]
    prepare(tmp_path, {"train": rows}, features=keys, version="3.0.0")
    forget()
    assert TFDSImages("tiny").num_classes == 7
    assert (np.asarray(TFDSImages("tiny").load().train.labels) == 5).all()


def test_bad_rows_are_refused_with_their_file(
    prepare, tiny_rows, tmp_path, monkeypatch
):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    rows = tiny_rows("train", 20)
    rows[13]["image"] = rows[13]["image"][:50]
    folder = prepare(tmp_path, {"train": rows}, shards=2)
    shard = folder / "tiny-train.array_record-00001-of-00002"
    refuse(f"'tiny:1.0.0': {shard} has a bad row 13: .*; make it again with `tfds")
    rows = tiny_rows("train", 20)
    rows[2]["label"] = -1
    folder = prepare(tmp_path, {"train": rows}, version="1.0.1")
    forget()
    refuse("has a bad row 2: label -1 is not one of 3")


def test_an_image_that_would_fill_the_memory_is_refused_with_its_file(
    prepare, tiny_rows, tmp_path, monkeypatch, encode
):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    rows = [{key: row[key] for key in features} for row in tiny_rows("train", 20)]
    png = bytearray(encode(np.zeros((1, 1, 3), np.uint8)))
    png[16:24] = (8193).to_bytes(4) * 2  # width and height
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4)
    rows[3]["image"] = bytes(png)
    shard = prepare(tmp_path, {"train": rows}, features=features)
    shard /= "tiny-train.array_record-00000-of-00001"
    message = f"{shard} has a bad row 3: image of 8193×8193 pixels; at most 67,108,864"
    with pytest.raises(ValueError, match=f"tiny:1.0.0.*{message}"):
        TFDSImages("tiny", size=4).load()


def test_too_few_rows_are_refused(prepare, tiny_rows, tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    prepare(tmp_path, {"train": tiny_rows("train", 9), "test": tiny_rows("test", 2)})
    refuse("'tiny' has 9 rows in the split 'train', but must have at least 10")
    prepare(tmp_path, {"test": tiny_rows("test", 20)}, version="2.0.0")
    forget()
    refuse("'tiny' has 0 rows in the split 'train'")


def test_what_was_read_once_is_not_read_again(tiny, monkeypatch):
    first = TFDSImages("tiny").load()
    assert TFDSImages("tiny").load() is first
    forget()
    monkeypatch.setattr(prepared, "read", None)
    again = TFDSImages("tiny").load()
    for split in SPLITS:
        np.testing.assert_array_equal(
            again.split(split).images, first.split(split).images
        )
        np.testing.assert_array_equal(
            again.split(split).labels, first.split(split).labels
        )


@pytest.mark.parametrize("keeps_size", [True, False])
def test_a_shard_damaged_after_it_was_cached_is_refused(keeps_size, tiny):
    TFDSImages("tiny").load()
    content = bytearray((tiny / SHARD).read_bytes())
    if keeps_size:
        content[len(content) // 64] ^= 255
    else:
        content = content[:-1]
    (tiny / SHARD).write_bytes(content)
    for _ in range(2):
        forget()
        refuse(f"'tiny:1.0.0': {tiny / SHARD} cannot be read")
    (tiny / SHARD).unlink()
    forget()
    refuse(f"'tiny:1.0.0': {tiny / SHARD} is missing")


def test_a_dataset_that_replaces_another_is_read(tiny, tiny_rows, prepare):
    before, content = TFDSImages("tiny").load(), TFDSImages("tiny").content()
    shutil.rmtree(tiny)
    rows = {"train": tiny_rows("train", 20), "test": tiny_rows("test", 3)}
    prepare(tiny.parents[1], rows)
    # In the same process too.
    after = TFDSImages("tiny").load()
    assert TFDSImages("tiny").content() != content
    assert len(after.train.labels) == 16 and len(before.train.labels) == 24


def test_two_folders_with_the_same_name_are_two(tiny, tmp_path, monkeypatch):
    first = TFDSImages("tiny").load()
    shutil.copytree(tiny.parents[1], tmp_path / "other")
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "other"))
    assert TFDSImages("tiny").load() is not first
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="is not a folder of datasets"):
        TFDSImages("tiny").load()


LOAD = """
import sys
import zlib
from tasks.data.tfds_images import TFDSImages
heavy = ("tensorflow", "tensorflow_datasets", "array_record", "PIL", "cv2")
loaded = lambda: [name for name in heavy if name in sys.modules]
assert not loaded(), loaded()
source = TFDSImages("tiny")
assert source.num_classes == 3 and not loaded(), loaded()
source.load()
print(*loaded())
"""


@pytest.mark.slow
def test_a_new_process_loads_quietly_and_without_tensorflow(tiny, tmp_path):
    environment = {**os.environ, cache.VARIABLE: str(tmp_path / "cache")}
    outs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", LOAD],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        outs.append(done.stdout.split())
    assert outs == [["tensorflow_datasets", "array_record", "PIL"], []]


COUNTS = {
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
    "cifar10_subset": (
        [1989, 1981, 2042, 2011, 2009, 1925, 2038, 2027, 2012, 1966],
        [103, 89, 100, 103, 90, 86, 112, 102, 106, 109],
    ),
}


@pytest.mark.parametrize("name", ["mnist", "cifar10_subset"])
@pytest.mark.slow
def test_real_data_has_its_rows_per_label(name, data_dir, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(data_dir(name).parent))
    source = TFDSImages(name)
    dataset = source.load()
    train, test = COUNTS[name]
    assert np.bincount(together(dataset, "labels", SPLITS[:3])).tolist() == train
    assert np.bincount(dataset.test.labels).tolist() == test
    num = sum(train)
    sizes = [len(dataset.split(s).labels) for s in SPLITS[:3]]
    assert sizes == [num * 8 // 10, num // 10, num // 10]
    assert dataset.train.images.shape[1:] == source.image_shape
    # By their bytes too: neither has an image twice, in one split or in two.
    images = together(dataset, "images")
    assert len({hashlib.sha256(image).digest() for image in images}) == len(images)
    if name == "mnist":
        # Of all 60,000 images it is 33.3184 and 78.5675.
        assert abs(float(dataset.mean[0]) - 33.32) < 0.2
        assert abs(float(dataset.std[0]) - 78.57) < 0.3
        assert not dataset.train.images[:, 0, 0].any()


def test_pixels_are_those_that_tfds_decodes(data_dir, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    root = data_dir("cifar10_subset").parent
    monkeypatch.setenv(prepared.VARIABLE, str(root))
    rows = tfds.data_source("cifar10_subset", split="test", data_dir=root)
    dataset = TFDSImages("cifar10_subset").load()
    for row in (0, 1, 500, 999):
        np.testing.assert_array_equal(dataset.test.images[row], rows[row]["image"])
        assert int(dataset.test.labels[row]) == rows[row]["label"]
