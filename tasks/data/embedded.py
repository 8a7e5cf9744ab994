"""Real images that ship with any installation."""

from __future__ import annotations

import functools
from importlib import metadata
from typing import Any

import numpy as np

from configuration.fields import configuration
from tasks.data.cache import Arrays, cached
from tasks.data.images import ImageDataset, Images, partition


@configuration
class Digits(Images):
    """The 1,797 handwritten 8×8 digits of scikit-learn, pixels 0…16.

    A fixed permutation is cut into 1,077 train, 180 inner_valid, 180 outer_valid and
    360 test rows.

    Reference: Alpaydin and Kaynak (1998), UCI Machine Learning Repository, CC BY 4.0.
    """

    image_shape = (8, 8, 1)
    num_classes = 10

    def load(self) -> ImageDataset:
        """Returns the dataset as device arrays (see `Images.load`)."""
        return _load_digits()


@functools.cache
def _load_digits() -> ImageDataset:
    about = {"scikit-learn": metadata.version("scikit-learn")}
    digits = cached("digits", about, _read_digits)
    order = np.random.RandomState(0).permutation(len(digits["labels"]))
    images = digits["images"][order].astype(np.uint8)[..., None]
    return partition(images, digits["labels"][order], (1077, 1257, 1437))


def _read_digits() -> Arrays:
    # Imported late, and once a machine: it takes longer than all of JAX.
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return {"images": digits.images, "labels": digits.target}
