"""Small prepared datasets and an isolated cache."""

import importlib
import io
import shutil

import numpy as np
import pytest

from tasks.data import prepared


@pytest.fixture(scope="session")
def encode():
    """`encode(pixels, kind="PNG")`: the file of `[height, width, channels]`."""
    image = pytest.importorskip("PIL.Image")

    def write(pixels, kind="PNG", **options):
        squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        file = io.BytesIO()
        image.fromarray(squeezed).save(file, kind, **options)
        return file.getvalue()

    return write


@pytest.fixture(scope="session")
def tiny_pixels():
    """`tiny_pixels(split, num)`: the images `[num, 6, 4, 3]` of a split of `tiny`."""

    def pixels(split, num):
        random = np.random.default_rng(len(split))
        return random.integers(0, 256, (num, 6, 4, 3), np.uint8)

    return pixels


@pytest.fixture(scope="session")
def tiny_rows(tiny_pixels, encode):
    """`tiny_rows(split, num)`: rows of `tiny`, labels 0, 1, 2, 0, 1, …"""
    return lambda split, num: [
        {"image": encode(image), "label": i % 3, "note": f"row {i}"}
        for i, image in enumerate(tiny_pixels(split, num))
    ]


@pytest.fixture(scope="session")
def prepare():
    """`prepare(folder, rows, ...)` writes a dataset, as TFDS does without TensorFlow.

    `rows` are lists of rows by split; `features` default to an image `[6, 4, 3]`, a
    label of three classes and a text; rows stay in their order. The name may be that of
    a dataset with a configuration, `name/config`.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    def write(folder, rows, name="tiny", features=None, version="1.0.0", shards=1):
        features = features or {
            "image": tfds.features.Image(shape=(6, 4, 3)),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
            "note": tfds.features.Text(),
        }

        def info(self):
            declared = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(
                builder=self, features=declared, disable_shuffling=True
            )

        def generate(self, split):
            yield from enumerate(rows[split])

        def generators(self, _):
            return {split: generate(self, split) for split in rows}

        dataset, _, config = name.partition("/")
        configs = [tfds.core.BuilderConfig(name=config)] if config else []
        with tfds.core.registered.skip_registration():
            builder = type(
                dataset.capitalize(),
                (tfds.core.GeneratorBasedBuilder,),
                {
                    "name": dataset,
                    "BUILDER_CONFIGS": configs,
                    "VERSION": tfds.core.Version(version),
                    "_info": info,
                    "_split_generators": generators,
                    "_generate_examples": generate,
                },
            )(data_dir=folder, file_format="array_record")
        config = tfds.download.DownloadConfig(num_shards=shards)
        builder.download_and_prepare(download_config=config)
        return folder / name / version

    return write


@pytest.fixture(scope="session")
def stock():
    """`stock(name)`: the builder of that name that comes with TFDS; nothing is read."""
    tfds = pytest.importorskip("tensorflow_datasets")
    # Without TensorFlow these two are not registered by themselves.
    for module in ("c4", "wikipedia"):
        importlib.import_module(f"tensorflow_datasets.text.{module}")
    return lambda name: tfds.builder(name, data_dir="/nowhere")


@pytest.fixture(scope="session")
def mock_rows(stock):
    """`mock_rows(name, num)`: different rows that TFDS makes up."""
    import tensorflow_datasets as tfds

    def rows(name, num):
        policy = tfds.testing.MockPolicy.USE_CODE
        with tfds.testing.mock_data(num_examples=num, policy=policy):
            source = stock(name).as_data_source("train")
            return [source[row] for row in range(num)]

    return rows


@pytest.fixture(scope="session")
def prepare_stock(stock, mock_rows, prepare, encode):
    """`prepare_stock(folder, name, splits)` writes mocked rows under a stock name.

    `splits` are numbers of rows. All that is declared is as the stock builder declares
    it. The rows come back by split, images as their pixels.
    """

    def write(folder, name, splits, **options):
        rows = iter(mock_rows(name, sum(splits.values())))
        given = {split: [next(rows) for _ in range(n)] for split, n in splits.items()}
        stored = {
            split: [
                {key: encode(v) if key == "image" else v for key, v in row.items()}
                for row in part
            ]
            for split, part in given.items()
        }
        builder = stock(name)
        features, version = dict(builder.info.features), str(builder.version)
        prepare(folder, stored, name, features, version, **options)
        return given

    return write


@pytest.fixture(scope="session")
def tiny_source(prepare, tiny_rows, tmp_path_factory):
    """The folder of datasets with `tiny`: 30 rows of train in 3 shards, 12 of test."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = {"train": tiny_rows("train", 30), "test": tiny_rows("test", 12)}
    prepare(folder, rows, shards=3)
    return folder


@pytest.fixture
def tiny(tiny_source, tmp_path, monkeypatch):
    """A copy of `tiny` to be damaged: the folder of its version."""
    shutil.copytree(tiny_source, tmp_path / "data")
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "data"))
    return tmp_path / "data" / "tiny" / "1.0.0"
