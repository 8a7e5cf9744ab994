"""Image data on the device: uint8 splits, normalized as they are gathered."""

from __future__ import annotations

import abc
import itertools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import SPLITS, Split
from tasks.data.arrays import draw_rows
from tasks.data.augmentation import AugmentationDraws
from tasks.source import Source


class Images(Source):
    """A source of labelled images: a frozen dataclass that describes them."""

    image_shape: tuple[int, int, int]
    """Height, width and channels of an image: a field or a property."""
    num_classes: int
    """Number of labels."""
    on_disk: ClassVar[bool] = False
    """Whether only the disk knows the shape; then it is not looked at before a run."""

    @abc.abstractmethod
    def load(self) -> ImageDataset:
        """The dataset as device arrays."""


class ImageSplit(NamedTuple):
    """Examples of one split."""

    images: jax.Array  # [n, height, width, channels] uint8
    labels: jax.Array  # [n] int32


class ImageDraws(NamedTuple):
    """What is random about `num` batches of `B` images."""

    rows: jax.Array  # [num, B] int32: which examples of the split
    places: jax.Array | None = None  # [num, B] int32: where they lie, if not there
    changes: AugmentationDraws | None = None  # None: images are taken as they are

    @property
    def at(self) -> jax.Array:
        """Where the images lie in the arrays that are at hand."""
        return self.rows if self.places is None else self.places


class ImageDataset(NamedTuple):
    """Four disjoint splits and statistics of the training images, per channel."""

    train: ImageSplit
    inner_valid: ImageSplit
    outer_valid: ImageSplit
    test: ImageSplit
    mean: tuple[jax.Array, ...]  # of each channel: [] float32, in raw pixels
    std: tuple[jax.Array, ...]  # of each channel: [] float32, in raw pixels

    def split(self, name: Split) -> ImageSplit:
        """The split of that name."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}; there are {', '.join(SPLITS)}")
        return getattr(self, name)


def check_drawn(data: Any, **least: int) -> None:
    """Refuses sizes and seeds of images that are drawn, not read.

    Args:
        data: what has the fields, and a `seed`.
        **least: the smallest value of each field that is a size.

    Raises:
        ValueError: naming the field.
    """
    for name, smallest in least.items():
        value = getattr(data, name)
        if value < smallest:
            raise ValueError(f"{name} = {value} must be at least {smallest}")
        if value > 10**8:
            raise ValueError(f"{name} = {value} must be at most 10⁸")
    if not 0 <= data.seed < 2**32:
        raise ValueError(f"seed = {data.seed} must be a whole number in [0, 2³²)")


def partition(
    images: np.ndarray, labels: np.ndarray, bounds: tuple[int, int, int]
) -> ImageDataset:
    """Cuts rows, already in random order, into the four splits.

    Args:
        images: `[n, height, width, channels]` uint8.
        labels: `[n]` integers.
        bounds: where inner_valid, outer_valid and test begin.
    """
    edges = (0, *bounds, len(images))
    # jnp.array copies: the device must not see the file behind a memory map.
    # Concrete even where a caller is being traced, for callers keep the result.
    with jax.ensure_compile_time_eval():
        parts = [
            ImageSplit(jnp.array(images[a:b]), jnp.array(labels[a:b], jnp.int32))
            for a, b in itertools.pairwise(edges)
        ]
        mean, std = (
            tuple(map(jnp.float32, statistic))
            for statistic in statistics(images[: bounds[0]])
        )
    return ImageDataset(*parts, mean=mean, std=std)


def statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, correctly rounded.

    Args:
        images: `[n, height, width, channels]` uint8, not empty.

    Returns:
        Two arrays `[channels]` float32. The deviation of a channel that is constant is
        given as 1, so that it is normalized to zeros.
    """
    pairs = []
    for channel in np.moveaxis(images, -1, 0):
        # Counts are exact, and need no copy of the images as floats.
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
    mean, std = np.asarray(pairs).T.astype(np.float32)
    return mean, std


def draw_indices(
    dataset: ImageDataset, key: jax.Array, split: Split, num: int, batch_size: int
) -> jax.Array:
    """Rows of `num` batches `[num, B]`, uniform with replacement."""
    size = len(dataset.split(split).labels)
    return draw_rows(key, size, num, batch_size)


def without_train(dataset: ImageDataset) -> ImageDataset:
    """The dataset with an empty training split: its rows come in windows."""
    nothing = jax.tree.map(
        lambda x: np.empty((0, *x.shape[1:]), x.dtype), dataset.train
    )
    return dataset._replace(train=nothing)


def fetch(dataset: ImageDataset, draws: ImageDraws) -> tuple[ImageSplit, ImageDraws]:
    """The training images that some draws name, one after the other, on the host.

    Args:
        dataset: on the host.
        draws: with any axes `[...]` before `[num, B]`.

    Returns:
        Images `[..., num · B, height, width, channels]` and labels `[..., num · B]` as
        NumPy arrays, and the draws with places among these `num · B`.
    """
    rows = np.asarray(draws.rows)
    num, batch_size = rows.shape[-2:]
    flat = rows.reshape(*rows.shape[:-2], num * batch_size)
    images, labels = (np.asarray(x) for x in dataset.train)
    places = np.arange(num * batch_size, dtype=np.int32).reshape(num, batch_size)
    return (
        ImageSplit(images[flat], labels[flat]),  # pyright: ignore
        draws._replace(places=np.broadcast_to(places, rows.shape)),
    )


def gather(dataset: ImageDataset, rows: jax.Array | slice, split: Split) -> ImageSplit:
    """Examples by row, images normalized to float32 with the training statistics."""
    images, labels = dataset.split(split)
    shape = images.shape[1:]
    # Flat rows: a loop over the pixels of an image is a quarter faster on a CPU than
    # one over height, width and three channels.
    pixels = images.reshape(len(images), -1)[rows].astype(jnp.float32)
    mean, std = (_flat(x, shape, pixels.ndim) for x in (dataset.mean, dataset.std))
    pixels = ((pixels - mean) / std).reshape(*pixels.shape[:-1], *shape)
    return ImageSplit(pixels, labels[rows])


def unnormalize(dataset: ImageDataset, normal: jax.Array) -> jax.Array:
    """Raw values of normalized images `[B, height, width, channels]`, in float32."""
    mean, std = (
        jnp.broadcast_to(jnp.stack(x), normal.shape)
        for x in (dataset.mean, dataset.std)
    )
    return normal * std + mean


def _flat(
    channels: tuple[jax.Array, ...], shape: tuple[int, ...], ndim: int
) -> jax.Array:
    """One value per channel, for pixels whose last axis is a flat image.

    A single channel stays a scalar all the way from the dataset: XLA divides by
    a scalar and by an array of one element in different ways, with different last bits.
    """
    if len(channels) == 1:
        return channels[0]
    flat = jnp.tile(jnp.stack(channels), math.prod(shape[:-1]))
    return flat.reshape((1,) * (ndim - 1) + (-1,))
