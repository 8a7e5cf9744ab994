"""Image data on the device: uint8 splits, normalized as they are gathered."""

from __future__ import annotations

import itertools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import SPLITS, Split


class Images(Protocol):
    """A source of labelled images: a frozen, hashable description."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        ...

    def load(self) -> ImageDataset:
        """The dataset as device arrays."""
        ...


class ImageSplit(NamedTuple):
    """Examples of one split."""

    images: jax.Array  # [n, height, width, channels] uint8
    labels: jax.Array  # [n] int32


class ImageDataset(NamedTuple):
    """Four disjoint splits and the statistics of the training images."""

    train: ImageSplit
    inner_valid: ImageSplit
    outer_valid: ImageSplit
    test: ImageSplit
    mean: jax.Array  # [] float32, in units of a raw pixel
    std: jax.Array  # [] float32, in units of a raw pixel

    def split(self, name: Split) -> ImageSplit:
        """The split of that name."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}; there are {', '.join(SPLITS)}")
        return getattr(self, name)


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
    parts = [
        ImageSplit(jnp.asarray(images[a:b]), jnp.asarray(labels[a:b], jnp.int32))
        for a, b in itertools.pairwise(edges)
    ]
    train = images[: bounds[0]].astype(np.float64)
    return ImageDataset(
        *parts, mean=jnp.float32(train.mean()), std=jnp.float32(train.std())
    )


def draw_indices(
    dataset: ImageDataset, key: jax.Array, split: Split, num: int, batch_size: int
) -> jax.Array:
    """Rows of `num` batches `[num, B]`, uniform with replacement."""
    size = len(dataset.split(split).labels)
    return jax.random.randint(key, (num, batch_size), 0, size)


def gather(dataset: ImageDataset, rows: jax.Array | slice, split: Split) -> ImageSplit:
    """Examples by row, images normalized to float32 with the training statistics."""
    images, labels = dataset.split(split)
    pixels = images[rows].astype(jnp.float32)
    return ImageSplit((pixels - dataset.mean) / dataset.std, labels[rows])
