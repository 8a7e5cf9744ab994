"""Images on the device: uint8 splits, normalized when batches are gathered."""

from __future__ import annotations

import abc
import functools
import itertools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import Split
from tasks.data.arrays import draw_rows, on_device, places_in_window, select
from tasks.data.augmentation import AugmentationDraws
from tasks.source import Source


class Images(Source):
    """A source of labelled images: a frozen dataclass that describes them."""

    image_shape: tuple[int, int, int]
    """Height, width and channels of an image: a field or a property."""
    num_classes: int
    """Number of labels: a field or a property."""
    on_disk: ClassVar[bool] = False
    """Whether the shape is read from disk, which happens only in a run."""

    @abc.abstractmethod
    def load(self) -> ImageDataset:
        """Returns the dataset as device arrays; read or made once per process.

        Raises:
            ValueError: in one line, if the dataset is missing, damaged or unfit.
        """


class ImageSplit(NamedTuple):
    """Examples of one split."""

    images: jax.Array  # [n, height, width, channels] uint8
    labels: jax.Array  # [n] int32


class ImageDraws(NamedTuple):
    """Random draws of `num` batches of `B` images."""

    rows: jax.Array  # [num, B] int32: examples of the split
    places: jax.Array | None = None  # [num, B] int32: rows of a fetched window instead
    changes: AugmentationDraws | None = None  # None: no augmentation

    @property
    def at(self) -> jax.Array:
        """Rows of the arrays on the device."""
        return self.rows if self.places is None else self.places


class ImageDataset(NamedTuple):
    """Four disjoint splits, and statistics of the training images per channel."""

    train: ImageSplit
    inner_valid: ImageSplit
    outer_valid: ImageSplit
    test: ImageSplit
    mean: tuple[jax.Array, ...]  # of each channel: [] float32, in raw pixels
    std: tuple[jax.Array, ...]  # of each channel: [] float32, in raw pixels

    def split(self, name: Split) -> ImageSplit:
        """Returns the split of that name."""
        return select(self, name)


class DrawnImages(Images):
    """Procedural images: a frozen dataclass whose fields and seed determine them."""

    num_train: int
    seed: int

    @abc.abstractmethod
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Draws images `[n, *image_shape]` uint8 and labels `[n]`, in split order."""

    @property
    def row_bounds(self) -> tuple[int, int, int]:
        """Rows at which inner_valid, outer_valid and test begin."""
        return split_bounds(self.num_train)

    def load(self) -> ImageDataset:
        """Returns the dataset as device arrays (see `Images.load`)."""
        return _draw_images(self)

    def check_fields(self, deviation: str, **least: int) -> None:
        """Raises ValueError naming a field that is out of range.

        Args:
            deviation: name of a field that is a standard deviation.
            **least: smallest value of each field that is a size.
        """
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise ValueError(f"{name} = {value} must be at least {smallest}")
            if value > 10**8:
                raise ValueError(f"{name} = {value} must be at most 10⁸")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed = {self.seed} must be a whole number in [0, 2³²)")
        value = getattr(self, deviation)
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{deviation} = {value} must not be negative")


@functools.cache
def _draw_images(source: DrawnImages) -> ImageDataset:
    return partition(*source.pixels(), source.row_bounds)


def split_bounds(num: int, test_apart: bool = True) -> tuple[int, int, int]:
    """Returns the rows at which inner_valid, outer_valid and test begin.

    `num` rows are cut 80/10/10, with test behind them, or else 70/10/10/10.
    """
    first, second, third = (8, 9, 10) if test_apart else (7, 8, 9)
    return (num * first // 10, num * second // 10, num * third // 10)


def partition(
    images: np.ndarray, labels: np.ndarray, bounds: tuple[int, int, int]
) -> ImageDataset:
    """Cuts rows, already in random order, into the four splits.

    Args:
        images: `[n, height, width, channels]` uint8.
        labels: `[n]` integers.
        bounds: rows at which inner_valid, outer_valid and test begin.
    """
    labels = labels.astype(np.int32)
    edges = (0, *bounds, len(images))
    parts: list[Any] = [
        ImageSplit(images[a:b], labels[a:b])  # pyright: ignore
        for a, b in itertools.pairwise(edges)
    ]
    mean, std = (tuple(channels) for channels in statistics(images[: bounds[0]]))
    return on_device(ImageDataset(*parts, mean=mean, std=std))


def statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation `[channels]`, correctly rounded to float32.

    Images are `[n, height, width, channels]` uint8, n > 0. The deviation of a constant
    channel is given as 1, so that it is normalized to zeros.
    """
    pairs = []
    for channel in np.moveaxis(images, -1, 0):
        # Counts are exact and need no copy of the images as floats.
        counts = np.zeros(256, np.int64)
        for chunk in np.array_split(channel, max(1, channel.size >> 20)):
            counts += np.bincount(chunk.ravel(), minlength=256)
        values = range(256)
        n, first, second = (
            sum(int(c) * v**power for c, v in zip(counts, values, strict=True))
            for power in range(3)
        )
        variance = (n * second - first**2) / n**2
        pairs.append((first / n, math.sqrt(variance) or 1.0))
    moments = np.asarray(pairs).T.astype(np.float32)
    return moments[0], moments[1]


def draw_indices(
    dataset: ImageDataset, key: jax.Array, split: Split, num: int, batch_size: int
) -> jax.Array:
    """Draws rows of `num` batches, `[num, B]` int32, with replacement."""
    return draw_rows(key, len(dataset.split(split).labels), num, batch_size)


def without_train(dataset: ImageDataset) -> ImageDataset:
    """Empties the training split, whose rows are fetched for each window."""
    return dataset._replace(train=jax.tree.map(lambda x: x[:0], dataset.train))


def fetch(dataset: ImageDataset, draws: ImageDraws) -> tuple[ImageSplit, ImageDraws]:
    """Fetches the training images of draws `[..., num, B]` on the host.

    Returns:
        Images `[..., num · B, height, width, channels]` and labels `[..., num · B]` as
        NumPy arrays, and the draws with their places among these.
    """
    rows = np.asarray(draws.rows)
    flat = rows.reshape(*rows.shape[:-2], -1)
    arrays: Any = [np.asarray(x)[flat] for x in dataset.train]
    return ImageSplit(*arrays), draws._replace(places=places_in_window(rows))


def gather(dataset: ImageDataset, rows: jax.Array | slice, split: Split) -> ImageSplit:
    """Gathers rows; images are normalized to float32 by the training statistics."""
    images, labels = dataset.split(split)
    shape = images.shape[1:]
    # Flat rows: on CPUs a quarter faster than height, width and three channels.
    pixels = images.reshape(len(images), -1)[rows].astype(jnp.float32)
    mean, std = (_flat(x, shape, pixels.ndim) for x in (dataset.mean, dataset.std))
    pixels = ((pixels - mean) / std).reshape(*pixels.shape[:-1], *shape)
    return ImageSplit(pixels, labels[rows])


def unnormalize(dataset: ImageDataset, normal: jax.Array) -> jax.Array:
    """Inverts the normalization of images `[B, height, width, channels]`."""
    mean, std = (
        jnp.broadcast_to(jnp.stack(x), normal.shape)
        for x in (dataset.mean, dataset.std)
    )
    return normal * std + mean


def _flat(
    channels: tuple[jax.Array, ...], shape: tuple[int, ...], ndim: int
) -> jax.Array:
    """Repeats one value per channel over pixels whose last axis is a flat image."""
    # A single channel stays a scalar: XLA divides by a scalar and by an array of one
    # element in different ways, with different last bits.
    if len(channels) == 1:
        return channels[0]
    flat = jnp.tile(jnp.stack(channels), math.prod(shape[:-1]))
    return flat.reshape((1,) * (ndim - 1) + (-1,))
