"""Signals of one dimension, made by a formula: as quick as digits, but harder.

Ten templates, curves through a few points, stand for the classes. An example is a
template that is stretched, moved, made higher or lower and sheared, in smooth noise. As
the place of the template varies from example to example, a linear classifier of the
points is not much use.

This is in the spirit of MNIST-1D (Greydanus and Kobak, arXiv:2011.14439), but templates
and ranges are others, so accuracies are not those of that paper.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from configuration.fields import configuration
from tasks.data.images import ImageDataset, Images, check_drawn, partition

TEMPLATES = (
    np.array(
        [
            [0, 2, 4, 6, 8, 9, 8, 6, 4, 2, 0, 0],  # a hill
            [0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0],  # a sudden rise
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0],  # a sudden fall
            [0, 6, 9, 6, 0, 0, 0, 6, 9, 6, 0, 0],  # two hills
            [0, 5, 9, 5, 0, -5, -9, -5, 0, 0, 0, 0],  # a hill, then a valley
            [0, -5, -9, -5, 0, 5, 9, 5, 0, 0, 0, 0],  # a valley, then a hill
            [0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0],  # a plateau
            [0, -2, -4, -6, -8, -9, -8, -6, -4, -2, 0, 0],  # a valley
            [0, 9, -3, 9, -3, 9, -3, 9, -3, 9, -3, 0],  # teeth
            [0, 9, 9, 9, 0, 0, -9, -9, -9, 0, 0, 0],  # steps
        ],
        np.float64,
    )
    / 9.0
)
"""Heights of the ten curves `[10, K]` at evenly spaced places; both ends are 0."""

STRETCH = (0.4, 0.7)
"""A template's length, as a fraction of the signal's."""
HEIGHT = (0.7, 1.3)
"""Factor on a template."""
SHEAR = 0.75
"""Largest difference in height between the two ends of a signal."""
SMOOTHNESS = 0.05
"""Deviation of the Gaussian that smooths the noise, as a fraction of the length."""
LIMIT = 2.5
"""Heights of -2.5 … 2.5 are stored as 0 … 255; what is beyond counts as the end."""


@configuration
class Signals(Images):
    """Procedurally made signals of ten classes, as images of one row.

    Classes come in turn, so each split has as many of one as of another. The training
    examples are cut 80/10/10 into train, inner_valid and outer_valid.
    """

    length: int = 40
    """Points of a signal."""
    num_train: int = 4000
    """Examples of train, inner_valid and outer_valid together."""
    num_test: int = 1000
    """Examples of test."""
    noise: float = 0.25
    """Deviation of the noise, in units of a template's height."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        check_drawn(self, length=12, num_train=10, num_test=1)
        if not 0.0 <= self.noise < math.inf:
            raise ValueError(f"noise = {self.noise} must not be negative")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """One row of `length` points, one channel."""
        return (1, self.length, 1)

    @property
    def num_classes(self) -> int:
        """Number of templates."""
        return len(TEMPLATES)

    def load(self) -> ImageDataset:
        """The dataset as device arrays (made once per process)."""
        return _make(self)

    def heights(self) -> tuple[np.ndarray, np.ndarray]:
        """Signals before they are rounded, float64 `[n, length]`, and labels `[n]`."""
        num = self.num_train + self.num_test
        rng = np.random.RandomState(self.seed)
        labels = np.arange(num) % self.num_classes
        stretch, place, height, shear = rng.uniform(size=(4, num, 1))
        stretch = STRETCH[0] + stretch * (STRETCH[1] - STRETCH[0])
        height = HEIGHT[0] + height * (HEIGHT[1] - HEIGHT[0])
        along = np.linspace(0.0, 1.0, self.length)[None]
        curves = curve(labels, (along - place * (1.0 - stretch)) / stretch)
        slopes = SHEAR * (2.0 * shear - 1.0) * (along - 0.5)
        distance = (along - along.T) / SMOOTHNESS
        smoothing = np.exp(-0.5 * distance**2)
        # Columns of length one, so that smooth noise has deviation one at each point.
        smoothing /= np.sqrt((smoothing**2).sum(0, keepdims=True))
        noise = self.noise * rng.normal(size=(num, self.length)) @ smoothing
        return height * curves + slopes + noise, labels


def curve(labels: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Heights of templates, linear between their points and 0 outside.

    Args:
        labels: `[n]`, which template.
        at: `[n, L]`, where: 0 is a template's begin and 1 its end.
    """
    intervals = TEMPLATES.shape[1] - 1
    place = np.clip(at, 0.0, 1.0) * intervals
    left = np.minimum(place.astype(int), intervals - 1)
    part = place - left
    rows = labels[:, None]
    return (1.0 - part) * TEMPLATES[rows, left] + part * TEMPLATES[rows, left + 1]


@functools.cache
def _make(signals: Signals) -> ImageDataset:
    heights, labels = signals.heights()
    grey = np.clip((heights / LIMIT + 1.0) / 2.0, 0.0, 1.0) * 255.0
    images = np.round(grey).astype(np.uint8)[:, None, :, None]
    train = signals.num_train
    return partition(images, labels, (train * 8 // 10, train * 9 // 10, train))
