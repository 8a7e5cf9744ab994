"""Labelled images of any dataset that TensorFlow Datasets has prepared."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from configuration import identity
from configuration.fields import configuration
from tasks.data import cache, decoding, known, prepared
from tasks.data.declared import Prepared
from tasks.data.images import ImageDataset, Images, partition, split_bounds
from tasks.source import kept

MAX_SIZE = 1024
# Part of the cache key: raise when pixels or order of the same files change.
_RECIPE = 1


@configuration
class TFDSImages(Images):
    """A TFDS dataset with one image and one label per row, in four disjoint splits.

    The dataset's train split, permuted by `numpy.random.RandomState(0).permutation(n)`,
    is cut 80/10/10 into train, inner_valid and outer_valid; its test split, or else its
    validation split, is test. Where there is neither, train is cut 70/10/10/10.

    Pixels are read lazily and kept as uint8, on the device and in the cache
    (`tasks.data.cache`), after `grey` and `size` are applied.
    """

    name: str = "mnist"
    """TFDS name: `name`, `name/config`, with `:1.2.3` for one version."""
    size: int | None = None
    """Height and width in pixels to resize to; None keeps the size.

    Whole factors average blocks, halves rounded up; others are Pillow's `BILINEAR`,
    which averages over its support when it shrinks. Images that are not square are
    stretched.
    """
    grey: bool = False
    """Whether colours become one channel before resizing (ITU-R 601-2 luma).

    Each of the two steps rounds to whole numbers.
    """

    on_disk: ClassVar[bool] = True

    def __post_init__(self) -> None:
        prepared.check_name(self.name)
        if self.size is not None and not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"size = {self.size} must be from 1 to {MAX_SIZE} pixels")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image.

        As declared on disk, or for a missing dataset as in `tasks.data.known`.
        """
        return _shape(self, _declared(self.name)[0])

    @property
    def num_classes(self) -> int:
        """Number of labels, from the same source as `image_shape`."""
        return _declared(self.name)[1]

    @property
    def label(self) -> str:
        """Name of the dataset."""
        return f"{self.name}, grey" if self.grey else self.name

    def missing(self) -> str | None:
        """Returns why the dataset is not on this machine; None if it is."""
        return prepared.missing(self.name)

    def content(self) -> str:
        """Returns the sha256 of the files of the splits that are read."""
        dataset = prepared.open_dataset(self.name)
        return prepared.content(dataset, _shards(dataset))

    def num_bytes(self) -> int:
        """Returns the bytes of images and labels, as declared."""
        dataset = prepared.open_dataset(self.name)
        rows = sum(dataset.splits[s] for s in {"train", dataset.held_out or "train"})
        return rows * (math.prod(self.image_shape) + 4)

    def load(self) -> ImageDataset:
        """Returns the dataset as device arrays (see `Images.load`)."""
        return _load(self)

    def state(self) -> Hashable:
        """Returns the folder of prepared datasets and the state of the files."""
        return prepared.data_dir(), prepared.state(prepared.open_dataset(self.name))


class _Columns(NamedTuple):
    dataset: Prepared
    image: str  # feature that holds the image
    label: str  # feature that holds the label


@functools.cache
def _columns(name: str, data_dir: Path) -> _Columns:
    del data_dir  # part of the cache key
    dataset = prepared.open_dataset(name)
    columns = _Columns(dataset, *(_only(dataset, kind) for kind in ("image", "label")))
    image = dataset.features[columns.image]
    if len(image.shape) != 3 or image.shape[2] not in decoding.MODES:
        raise ValueError(
            f"dataset {name!r}: shape {image.shape} of {columns.image!r} must be "
            "height, width and 1 or 3 channels"
        )
    if image.dtype != "uint8":
        raise ValueError(
            f"dataset {name!r}: type {image.dtype} of {columns.image!r} must be uint8"
        )
    known.check(dataset, image, dataset.features[columns.label])
    return columns


def _declared(name: str) -> tuple[tuple[int | None, ...], int]:
    """Returns the shape of stored images, and the number of labels."""
    try:
        columns = _columns(name, prepared.data_dir())
    except prepared.MissingError:
        entry = known.KNOWN.get(prepared.check_name(name)[0])
        if entry is None or entry.image_shape is None:
            raise
        return entry.image_shape, entry.num_classes
    features = columns.dataset.features
    return features[columns.image].shape, features[columns.label].num_classes


def _only(dataset: Prepared, kind: str) -> str:
    """Returns the only feature of a kind, or the one with its name."""
    keys = [key for key, value in dataset.features.items() if value.kind == kind]
    if len(keys) == 1:
        return keys[0]
    if kind in keys:
        return kind
    raise ValueError(
        f"dataset {dataset.name!r} must have one image and one label in a row, but has "
        f"{dataset.listing}"
    )


def _shape(source: TFDSImages, stored: tuple[int | None, ...]) -> tuple[int, int, int]:
    """Returns the shape of images after `size` and `grey`."""
    height, width, channels = stored
    if source.size is not None:
        height = width = source.size
    if height is None or width is None or channels is None:
        raise ValueError(
            f"dataset {source.name!r} has images of various sizes: give size, the "
            "height and width to resize to"
        )
    return (height, width, 1 if source.grey else channels)


@kept
def _load(source: TFDSImages) -> ImageDataset:
    # Not what is kept: the files may have been replaced.
    columns = _columns.__wrapped__(source.name, prepared.data_dir())
    dataset = columns.dataset
    shape = _shape(source, dataset.features[columns.image].shape)
    splits = _splits(dataset)
    num = dataset.splits.get("train", 0)
    if num < 10:
        raise ValueError(
            f"dataset {source.name!r} has {num} rows in the split 'train', but must "
            "have at least 10 to be cut"
        )
    arrays = cache.cached(
        str(dataset),
        {
            "recipe": _RECIPE,
            "size": source.size,
            "grey": source.grey,
            "splits": splits,
            "pillow": identity.version("pillow"),
            "content": prepared.content(dataset, _shards(dataset)),
        },
        lambda: _read(columns, splits, shape, source),
        _shards(dataset),
    )
    bounds = split_bounds(num, test_apart=len(splits) == 2)
    return partition(arrays["images"], arrays["labels"], bounds)


def _splits(dataset: Prepared) -> tuple[str, ...]:
    return ("train", dataset.held_out) if dataset.held_out else ("train",)


def _shards(dataset: Prepared) -> list[Path]:
    return [s for split in _splits(dataset) for s in dataset.shards.get(split, ())]


def _read(
    columns: _Columns,
    splits: tuple[str, ...],
    shape: tuple[int, int, int],
    source: TFDSImages,
) -> dict[str, np.ndarray]:
    """Reads the rows of the splits in turn, and permutes those of the first."""
    dataset, image, label = columns
    sizes = [dataset.splits[split] for split in splits]
    images = np.empty((sum(sizes), *shape), np.uint8)
    labels = np.empty(sum(sizes), np.int32)
    decode = decoding.decoder(
        dataset.features[image].shape, size=source.size, grey=source.grey
    )
    places = np.arange(sum(sizes))
    places[np.random.RandomState(0).permutation(sizes[0])] = np.arange(sizes[0])
    num_classes = dataset.features[label].num_classes
    start = 0
    for split, size in zip(splits, sizes, strict=True):
        for row, values in enumerate(prepared.read(dataset, split)):
            place = places[start + row]
            try:
                images[place] = decode(values[image])
            # Pillow raises exceptions of many kinds.
            except Exception as error:
                raise prepared.damaged_row(dataset, split, row, error) from None
            if not 0 <= values[label] < num_classes:
                what = f"label {values[label]} is not one of {num_classes}"
                raise prepared.damaged_row(dataset, split, row, what)
            labels[place] = values[label]
        start += size
    return {"images": images, "labels": labels}
