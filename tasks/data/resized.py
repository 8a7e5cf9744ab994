"""Images of a dataset at another resolution."""

from __future__ import annotations

import numpy as np

from configuration.fields import configuration
from tasks.data.decoding import shrink
from tasks.data.images import ImageDataset, Images, partition
from tasks.data.tfds_images import MAX_SIZE
from tasks.source import kept


@configuration
class Resized(Images):
    """Square images of a dataset, smaller or larger by a whole factor.

    Smaller images are means over blocks, halves rounded up; in larger ones pixels are
    repeated, so only the number of a network's inputs changes. Labels, splits and order
    stay.
    """

    data: Images
    """The images; TFDSImages has a `size` of its own."""
    size: int
    """Height and width, in pixels."""

    def __post_init__(self) -> None:
        if self.data.on_disk:
            raise ValueError(
                f"data = {self.data!r} must be images whose shape is known without a "
                "disk; TFDSImages has a size of its own"
            )
        height, width, _ = self.data.image_shape
        fits = 1 <= self.size <= MAX_SIZE and (
            self.size % height == 0 or height % self.size == 0
        )
        if height != width or not fits:
            raise ValueError(
                f"size = {self.size!r} must be a multiple or a divisor of the height "
                f"and width of square images; these are {height} x {width}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (self.size, self.size, self.data.image_shape[2])

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return self.data.num_classes

    @property
    def label(self) -> str:
        """Name of the data."""
        return self.data.label

    def content(self) -> str:
        """Returns the content of the data."""
        return self.data.content()

    def load(self) -> ImageDataset:
        """Returns the dataset as device arrays (see `Images.load`)."""
        return _load(self)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes square images `[n, height, height, channels]` uint8."""
    height = images.shape[1]
    if size < height:
        return shrink(images, size)
    return images.repeat(size // height, axis=1).repeat(size // height, axis=2)


@kept
def _load(source: Resized) -> ImageDataset:
    dataset = source.data.load()
    splits = dataset[:4]
    images = np.concatenate([np.asarray(split.images) for split in splits])
    labels = np.concatenate([np.asarray(split.labels) for split in splits])
    first, second, third = np.cumsum([len(split.labels) for split in splits[:3]])
    bounds = (int(first), int(second), int(third))
    return partition(resize(images, source.size), labels, bounds)
