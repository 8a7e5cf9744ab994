"""The table of known datasets, and its check against the disk."""

import json

import numpy as np
import pytest

from tasks.data import prepared, tfds_images
from tasks.data.known import KNOWN
from tasks.data.tfds_images import TFDSImages


@pytest.fixture(autouse=True)
def forget():
    tfds_images._load.cache_clear()
    tfds_images._columns.cache_clear()


@pytest.mark.parametrize("place", [None, "/nowhere", "empty"])
def test_shapes_are_known_without_the_disk(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    if place is None:
        monkeypatch.delenv(prepared.VARIABLE, raising=False)
    else:
        (tmp_path / "empty").mkdir()
        monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / place))
    for name in ("imagenet_resized/32x32", "imagenet_resized/32x32:0.1.0"):
        source = TFDSImages(name)
        assert source.image_shape == (32, 32, 3) and source.num_classes == 1000
        assert TFDSImages(name, size=8, grey=True).image_shape == (8, 8, 1)
        with pytest.raises(prepared.MissingError):
            source.load()
    assert TFDSImages("cifar100").num_classes == 100
    assert TFDSImages("food101", size=64).image_shape == (64, 64, 3)
    with pytest.raises(ValueError, match="'food101' has images of various sizes"):
        _ = TFDSImages("food101").image_shape


@pytest.mark.parametrize(
    "name", ["lm1b", "c4/en", "tiny", "imagenet_resized", "imagenet_resized/8x9"]
)
def test_what_is_not_in_the_table_or_has_no_images_is_missing(name, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, "/nowhere")
    for use in ("image_shape", "num_classes"):
        with pytest.raises(prepared.MissingError, match="/nowhere is not a folder"):
            getattr(TFDSImages(name), use)


@pytest.mark.parametrize(
    ("shape", "classes"), [((28, 28, 3), 10), ((14, 14, 1), 10), ((28, 28, 1), 11)]
)
def test_another_dataset_under_a_known_name_is_refused_with_both(
    shape, classes, prepare, encode, tmp_path, monkeypatch
):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=classes),
    }
    rows = [{"image": encode(np.zeros(shape, np.uint8)), "label": 0}] * 10
    prepare(tmp_path, {"train": rows}, "mnist", features, "3.0.1")
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    source = TFDSImages("mnist")
    for use in (source.load, lambda: source.image_shape, lambda: source.num_classes):
        with pytest.raises(ValueError) as error:
            use()
        message = str(error.value)
        assert f"shape {shape} and {classes} labels" in message
        assert "known to have (28, 28, 1) and 10" in message and "\n" not in message


def test_a_damaged_declaration_is_not_covered_by_the_table(
    prepare_stock, tmp_path, monkeypatch
):
    prepare_stock(tmp_path, "cifar10", {"train": 10})
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    assert TFDSImages("cifar10").num_classes == 10
    (tmp_path / "cifar10" / "3.0.2" / "features.json").write_text("{}")
    tfds_images._columns.cache_clear()
    with pytest.raises(ValueError, match=r"'cifar10:3.0.2'.*tfds build") as error:
        _ = TFDSImages("cifar10").num_classes
    assert not isinstance(error.value, prepared.MissingError)


def test_a_label_beyond_the_declared_ones_is_refused_with_its_row(
    prepare, tiny_rows, tmp_path, monkeypatch
):
    rows = tiny_rows("train", 20)  # labels 0, 1, 2, 0, …
    folder = prepare(tmp_path, {"train": rows})
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    declared = json.loads((folder / "features.json").read_text())
    declared["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "2"
    (folder / "features.json").write_text(json.dumps(declared))
    with pytest.raises(ValueError, match=r"has a bad row 2: label 2 is not one of 2"):
        TFDSImages("tiny").load()


def test_the_table_is_plausible():
    for name, known in KNOWN.items():
        assert prepared.check_name(name) == (name, None)
        assert "train" in known.rows and min(known.rows.values()) >= 1000
        assert known.gigabytes > 0 and ";" in known.source
        assert (known.image_shape is None) == (known.num_classes == 0)


@pytest.mark.parametrize("name", ["mnist", "cifar10_subset"])
def test_real_data_is_as_the_table_says(name, data_dir, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(data_dir(name).parent))
    assert prepared.open_dataset(name).splits == KNOWN[name].rows
    size = sum(file.stat().st_size for file in data_dir(name).rglob("*"))
    assert abs(size / 1e9 - KNOWN[name].gigabytes) < 0.1 * KNOWN[name].gigabytes
    assert TFDSImages(name).image_shape == KNOWN[name].image_shape
