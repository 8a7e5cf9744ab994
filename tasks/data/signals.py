"""Procedural signals of one dimension: as fast as digits, but harder.

Each class is a template, a curve through a few points. An example is its template
stretched, moved, scaled and sheared, in smooth noise; because templates move, a linear
classifier of the points does poorly.

In the spirit of MNIST-1D (Greydanus and Kobak, arXiv:2011.14439), but with other
templates and ranges, so accuracies are not comparable with that paper's.
"""

from __future__ import annotations

import numpy as np

from configuration.fields import configuration
from tasks.data.images import DrawnImages

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
"""Heights of the ten curves, `[10, K]`, at evenly spaced points; both ends are 0."""

STRETCH = (0.4, 0.7)
"""Range of a template's length, as a fraction of the signal's."""
HEIGHT = (0.7, 1.3)
"""Range of the factor on a template."""
SHEAR = 0.75
"""Largest difference in height between the two ends of a signal."""
SMOOTHNESS = 0.05
"""Standard deviation of the noise's smoothing kernel, as a fraction of the length."""
LIMIT = 2.5
"""Heights from -2.5 to 2.5 are stored as 0 … 255; others are clipped."""


@configuration
class Signals(DrawnImages):
    """Procedural signals of ten classes, as images of one row.

    Classes alternate, so every split is balanced. The training examples are cut
    80/10/10 into train, inner_valid and outer_valid.
    """

    length: int = 40
    """Number of points."""
    num_train: int = 4000
    """Number of examples of train, inner_valid and outer_valid together."""
    num_test: int = 1000
    """Number of test examples."""
    noise: float = 0.25
    """Standard deviation of the noise, in units of a template's height."""
    seed: int = 0
    """Seed of everything random."""

    num_classes = len(TEMPLATES)

    def __post_init__(self) -> None:
        self.check_fields("noise", length=12, num_train=10, num_test=1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """One row of `length` points, one channel."""
        return (1, self.length, 1)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Draws signals as images of one row (see `DrawnImages.pixels`)."""
        heights, labels = self.heights()
        grey = np.clip((heights / LIMIT + 1.0) / 2.0, 0.0, 1.0) * 255.0
        return np.round(grey).astype(np.uint8)[:, None, :, None], labels

    def heights(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns signals before rounding, `[n, length]` float64, and labels `[n]`."""
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
        # Unit columns, so that the smooth noise has deviation 1 at each point.
        smoothing /= np.sqrt((smoothing**2).sum(0, keepdims=True))
        noise = self.noise * rng.normal(size=(num, self.length)) @ smoothing
        return height * curves + slopes + noise, labels


def curve(labels: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolates the templates `labels` `[n]` linearly at positions `at` `[n, L]`.

    A template begins at 0 and ends at 1; outside it is 0.
    """
    intervals = TEMPLATES.shape[1] - 1
    place = np.clip(at, 0.0, 1.0) * intervals
    left = np.minimum(place.astype(int), intervals - 1)
    part = place - left
    rows = labels[:, None]
    return (1.0 - part) * TEMPLATES[rows, left] + part * TEMPLATES[rows, left + 1]
