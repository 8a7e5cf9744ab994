"""In-memory noise images of any number and shape."""

from __future__ import annotations

import dataclasses

import numpy as np

from tasks.data.images import ImageDataset, Images, partition


@dataclasses.dataclass(frozen=True)
class Synthetic(Images):
    """Noise with random labels; 80 % of the rows are for training."""

    image_shape: tuple[int, int, int]
    num_classes: int = 10
    num_rows: int = 10_000

    def load(self) -> ImageDataset:
        """Draws the images from a fixed seed."""
        random = np.random.default_rng(0)
        shape = (self.num_rows, *self.image_shape)
        images = random.integers(0, 256, shape, np.uint8)
        labels = random.integers(0, self.num_classes, self.num_rows)
        inner, outer, test = (round(self.num_rows * x) for x in (0.8, 0.85, 0.9))
        return partition(images, labels, (inner, outer, test))
