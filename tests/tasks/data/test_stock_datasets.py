"""Datasets of TFDS by their own names: mocked rows, declared as the stock builders do.

The rows are written as TFDS writes them, so the code that reads real data reads them.
"""

import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")
pytest.importorskip("PIL")

from tasks import MLP, ImageClassification
from tasks.base import SPLITS
from tasks.data import prepared
from tasks.data.known import KNOWN
from tasks.data.tfds_images import TFDSImages
from tasks.data.tfds_text import TFDSText
from tasks.data.tokenizers import BytePairs

NUM = 41
HELD_OUT = 12
IMAGES = (
    "imagenet_resized/32x32",
    "cifar10",
    "cifar100",
    "svhn_cropped",
    "food101",
    "fashion_mnist",
)
TEXTS = ("lm1b", "wikipedia/20230601.en", "c4/en")
SIZES = {"food101": 10}
"""Height and width to resize to, of those whose images have various ones."""


@pytest.fixture(scope="module")
def folder(prepare_stock, tmp_path_factory):
    """The folder of all datasets, and their rows by name and split."""
    folder = tmp_path_factory.mktemp("stock")
    rows = {}
    for name in IMAGES + TEXTS:
        splits = {s: NUM if s == "train" else HELD_OUT for s in KNOWN[name].rows}
        rows[name] = prepare_stock(folder, name, splits, shards=3)
    return folder, rows


@pytest.fixture(autouse=True)
def data(folder, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(folder[0]))


@pytest.fixture(scope="module")
def rows(folder):
    return folder[1]


def held_out(name):
    return next((s for s in ("test", "validation") if s in KNOWN[name].rows), None)


def digests(examples):
    return [hashlib.sha256(example).digest() for example in examples]


def disjoint(parts):
    """Checks that no example occurs twice; returns the number of examples."""
    for one, other in itertools.combinations(parts, 2):
        assert not set(one) & set(other)
    together = [digest for part in parts for digest in part]
    assert len(set(together)) == len(together)
    return len(together)


@pytest.mark.parametrize("name", IMAGES)
def test_images_and_labels_are_the_mocked_ones_and_none_is_lost(name, rows):
    source = TFDSImages(name, SIZES.get(name))
    dataset = source.load()
    # Of 41 rows four tenths of a row are lost nowhere: 32 + 4 + 5.
    assert [len(dataset.split(s).labels) for s in SPLITS] == [32, 4, 5, HELD_OUT]
    order = np.random.RandomState(0).permutation(NUM)
    mocked = [rows[name]["train"][i] for i in order] + rows[name][held_out(name)]
    labels = np.concatenate([dataset.split(s).labels for s in SPLITS])
    assert labels.tolist() == [int(row["label"]) for row in mocked]
    images = np.concatenate([dataset.split(s).images for s in SPLITS])
    assert images.shape[1:] == source.image_shape and images.dtype == np.uint8
    if name not in SIZES:
        np.testing.assert_array_equal(images, [row["image"] for row in mocked])


def test_images_of_various_sizes_are_resized_as_pillow_does(rows):
    from PIL import Image

    images = np.asarray(TFDSImages("food101", 10).load().test.images)
    mocked = [row["image"] for row in rows["food101"]["validation"]]
    assert len({image.shape for image in mocked}) > 5
    compared = 0
    for image, found in zip(mocked, images, strict=True):
        if image.shape[0] % 10 or image.shape[1] % 10:
            small = Image.fromarray(image).resize((10, 10), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(found, small)
            compared += 1
    assert compared > 5


@pytest.mark.parametrize("name", IMAGES)
def test_no_image_is_in_two_splits(name):
    dataset = TFDSImages(name, SIZES.get(name)).load()
    parts = [
        digests(image.tobytes() for image in np.asarray(dataset.split(s).images))
        for s in SPLITS
    ]
    assert disjoint(parts) == NUM + HELD_OUT


@pytest.mark.parametrize(
    "name", [*IMAGES, "mnist", *(f"imagenet_resized/{n}x{n}" for n in (8, 16, 64))]
)
def test_what_is_known_is_what_the_stock_builder_declares(name, stock, monkeypatch):
    features = stock(name).info.features
    monkeypatch.setenv(prepared.VARIABLE, "/nowhere")
    shape = TFDSImages(name, SIZES.get(name)).image_shape
    declared = features["image"].shape
    assert shape == ((10, 10, 3) if name in SIZES else declared)
    assert KNOWN[name].image_shape == declared
    assert TFDSImages(name).num_classes == features["label"].num_classes


def test_a_task_on_stock_data_has_its_shapes_with_and_without_the_data(monkeypatch):
    task = ImageClassification(MLP((8,)), TFDSImages("imagenet_resized/32x32"))

    def sizes():
        leaves = jax.tree.leaves(task.specs())
        return sorted(spec.shape for spec in leaves)

    there = sizes()
    monkeypatch.setenv(prepared.VARIABLE, "/nowhere")
    assert sizes() == there == [(8,), (8, 1000), (1000,), (3072, 8)]
    assert abs(task.loss_at_chance - np.log(1000)) < 1e-12
    with pytest.raises(ValueError, match="/nowhere is not a folder"):
        task.load_data()


def test_of_two_labels_the_fine_one_is_learned(rows):
    dataset = TFDSImages("cifar100").load()
    assert dataset.test.labels.max() >= 20  # more than there are coarse ones
    coarse = [int(row["coarse_label"]) for row in rows["cifar100"]["test"]]
    assert dataset.test.labels.tolist() != coarse


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_the_mocked_one_and_nothing_is_lost(name, rows):
    dataset = TFDSText(name).load()
    parts = [np.asarray(dataset.split(s)).tobytes() for s in SPLITS]
    texts = {
        split: "\n".join(row["text"] for row in part).encode()
        for split, part in rows[name].items()
    }
    test = held_out(name)
    assert b"".join(parts) == texts["train"] + texts.get(test, b"")
    total = len(texts["train"])
    shares = (0.8, 0.1, 0.1) if test else (0.7, 0.1, 0.1, 0.1)
    for part, share in zip(parts, shares, strict=False):
        assert abs(len(part) - share * total) <= 20  # the longest row has 19 bytes
    if test:
        assert parts[3] == texts[test]


@pytest.mark.parametrize("name", TEXTS)
def test_no_row_of_text_is_in_two_splits(name, rows):
    dataset = TFDSText(name).load()
    parts = [
        digests(np.asarray(dataset.split(s)).tobytes().removesuffix(b"\n").split(b"\n"))
        for s in SPLITS
    ]
    mocked = [row["text"].encode() for part in rows[name].values() for row in part]
    assert disjoint(parts) == len(mocked)
    assert {d for part in parts for d in part} == set(digests(mocked))


def test_text_is_made_of_byte_pairs_too(rows):
    pytest.importorskip("tokenizers")
    source = TFDSText("c4/en", BytePairs(260))
    dataset = source.load()
    assert dataset.train.dtype == jnp.uint16
    want = "\n".join(row["text"] for row in rows["c4/en"]["validation"])
    assert source.decode(np.asarray(dataset.test)) == want


@pytest.mark.parametrize("name", IMAGES + TEXTS)
def test_without_the_data_loading_says_how_it_is_made(name, tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    kind = TFDSText if name in TEXTS else TFDSImages
    with pytest.raises(prepared.MissingError) as error:
        kind(name).load()
    message = str(error.value)
    command = f"`tfds build {name} --file_format=array_record --data_dir={tmp_path}`"
    assert command in message and "\n" not in message
    assert "on disk" in message and KNOWN[name].source in message
