"""Procedural pictures of coloured shapes, with their captions as classes.

A picture shows one shape of one colour, at a random position and size, on a grey ground
in slight noise. Its class is its caption, such as "red circle", so that a generated
picture can be judged at a glance. Edges are one pixel wide.
"""

from __future__ import annotations

import math

import numpy as np

from configuration.fields import configuration
from tasks.data.images import DrawnImages

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 180, 75),
    "blue": (40, 90, 225),
}
"""Mean red, green and blue of each colour, 0 … 255."""

SIZE = (0.22, 0.36)
"""Range of half the width of a shape, as a fraction of the picture's height."""
GROUND = (80.0, 190.0)
"""Range of the ground's grey level."""
TINT = 15.0
"""Largest deviation of each channel of a colour from its mean."""

_ROWS_AT_ONCE = 500


@configuration
class Shapes(DrawnImages):
    """Procedural square RGB pictures of four shapes in three colours.

    Classes alternate, so every split is balanced. The training examples are cut
    80/10/10 into train, inner_valid and outer_valid.
    """

    size: int = 32
    """Height and width in pixels."""
    num_train: int = 4000
    """Number of examples of train, inner_valid and outer_valid together."""
    num_test: int = 1000
    """Number of test examples."""
    noise: float = 4.0
    """Standard deviation of the noise in grey levels, equal in all channels."""
    seed: int = 0
    """Seed of everything random."""

    num_classes = len(SHAPES) * len(COLOURS)

    def __post_init__(self) -> None:
        self.check_fields("noise", size=8, num_train=10, num_test=1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a picture."""
        return (self.size, self.size, 3)

    @property
    def captions(self) -> tuple[str, ...]:
        """Captions of the classes; colours change fastest."""
        return tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Draws pictures `[n, size, size, 3]` uint8 and labels `[n]`."""
        num = self.num_train + self.num_test
        rng = np.random.RandomState(self.seed)
        labels = np.arange(num) % self.num_classes
        size, x, y, ground = rng.uniform(size=(4, num))
        size = SIZE[0] + size * (SIZE[1] - SIZE[0])
        # The whole shape is in the picture.
        x, y = (size + place * (1.0 - 2.0 * size) for place in (x, y))
        ground = GROUND[0] + ground * (GROUND[1] - GROUND[0])
        means = np.asarray(list(COLOURS.values()), np.float64)
        colours = means[labels % len(COLOURS)]
        colours += TINT * rng.uniform(-1.0, 1.0, size=(num, 3))
        images = np.empty((num, *self.image_shape), np.uint8)
        for begin in range(0, num, _ROWS_AT_ONCE):
            rows = slice(begin, begin + _ROWS_AT_ONCE)
            part = self._cover(
                labels[rows] // len(COLOURS), size[rows], x[rows], y[rows]
            )[..., None]
            grey = ground[rows, None, None, None]
            values = grey + part * (colours[rows, None, None] - grey)
            values += self.noise * rng.standard_normal((*values.shape[:3], 1))
            images[rows] = np.clip(np.round(values), 0, 255)
        return images, labels

    def _cover(
        self, shapes: np.ndarray, size: np.ndarray, x: np.ndarray, y: np.ndarray
    ) -> np.ndarray:
        """Returns the share of each pixel that is covered, `[n, size, size]`."""
        centres = (np.arange(self.size) + 0.5) / self.size
        across = (centres[None, None, :] - x[:, None, None]) / size[:, None, None]
        down = (centres[None, :, None] - y[:, None, None]) / size[:, None, None]
        outside = distance(shapes, across, down) * size[:, None, None]
        return np.clip(0.5 - self.size * outside, 0.0, 1.0)


def distance(shapes: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Computes signed distances `[n, h, w]` to the edge of a shape, negative inside.

    All lengths are in half widths of a shape; distances are exact near the edge.

    Args:
        shapes: `[n]`, indices into `SHAPES`.
        across: `[n, 1, w]`, to the right of the centre.
        down: `[n, h, 1]`, below the centre.
    """
    out = np.empty(np.broadcast_shapes(across.shape, down.shape))
    for index, name in enumerate(SHAPES):
        rows = shapes == index
        u, v = across[rows], down[rows]
        if name == "circle":
            out[rows] = np.sqrt(u**2 + v**2) - 1.0
        elif name == "square":
            out[rows] = np.maximum(np.abs(u), np.abs(v)) - 0.86
        elif name == "triangle":
            # Apex at the top; both sides have slope 2.
            slope = (2.0 * np.abs(u) - 1.0 - v) / math.sqrt(5.0)
            out[rows] = np.maximum(slope, v - 1.0)
        else:
            u, v = np.broadcast_arrays(np.abs(u), np.abs(v))
            long, short = np.maximum(u, v), np.minimum(u, v)
            out[rows] = np.maximum(long - 1.0, short - 0.34)
    return out
