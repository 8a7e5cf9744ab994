"""Images at another resolution, where the data itself has only one."""

from __future__ import annotations

import functools

import numpy as np

from configuration.fields import configuration
from tasks.data.images import ImageDataset, Images, partition
from tasks.data.tfds_images import MAX_SIZE


@configuration
class Resized(Images):
    """Square images of some data, smaller or larger by a whole factor.

    Smaller ones are means over blocks, halves rounded up; in larger ones every pixel is
    repeated. So nothing is added to what an image shows, and what changes for a network
    is the number of its inputs. Labels, splits and order are those of the data.
    """

    data: Images
    """The images; of a TFDS dataset its own `size` does this."""
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

    def fingerprint(self) -> str | None:
        """Returns the fingerprint of the data."""
        return self.data.fingerprint()

    def load(self) -> ImageDataset:
        """The dataset as device arrays (made once per process)."""
        return _load(self)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Square images `[n, height, height, channels]` uint8 at another size."""
    num, height, _, channels = images.shape
    if size >= height:
        return images.repeat(size // height, axis=1).repeat(size // height, axis=2)
    block = height // size
    blocks = images.reshape(num, size, block, size, block, channels).astype(np.int64)
    # ⌊mean + ½⌋ in whole numbers.
    return ((2 * blocks.sum((2, 4)) + block**2) // (2 * block**2)).astype(np.uint8)


@functools.cache
def _load(source: Resized) -> ImageDataset:
    dataset = source.data.load()
    splits = dataset[:4]
    images = np.concatenate([np.asarray(split.images) for split in splits])
    labels = np.concatenate([np.asarray(split.labels) for split in splits])
    first, second, third = np.cumsum([len(split.labels) for split in splits[:3]])
    bounds = (int(first), int(second), int(third))
    return partition(resize(images, source.size), labels, bounds)
