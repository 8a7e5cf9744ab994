"""Coloured shapes: small pictures whose captions are true, made by a formula.

A picture shows one shape of one colour at some place and of some size on a grey ground,
in slight noise. Its class is its caption, "red circle" for instance. So whoever looks
at a picture that was generated for a caption can say at once whether it is right.

A shape is given by its distance function: negative inside, in units of its size. The
edge is one pixel wide.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from configuration.fields import configuration
from tasks.data.images import ImageDataset, Images, check_drawn, partition

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 180, 75),
    "blue": (40, 90, 225),
}
"""Mean red, green and blue of each colour, 0 … 255."""

SIZE = (0.22, 0.36)
"""Half the width of a shape, as a fraction of the picture's height."""
GROUND = (80.0, 190.0)
"""Grey levels of the ground."""
TINT = 15.0
"""Each channel of a colour differs from the mean by at most this much."""

_ROWS_AT_ONCE = 500


@configuration
class Shapes(Images):
    """Procedurally made square RGB pictures of four shapes in three colours.

    Classes come in turn, so each split has as many of one as of another. The training
    examples are cut 80/10/10 into train, inner_valid and outer_valid.
    """

    size: int = 32
    """Height and width in pixels."""
    num_train: int = 4000
    """Examples of train, inner_valid and outer_valid together."""
    num_test: int = 1000
    """Examples of test."""
    noise: float = 4.0
    """Deviation of the noise on every pixel, in grey levels, alike in all channels."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        check_drawn(self, size=8, num_train=10, num_test=1)
        if not 0.0 <= self.noise < math.inf:
            raise ValueError(f"noise = {self.noise} must not be negative")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Square pictures of three channels."""
        return (self.size, self.size, 3)

    @property
    def num_classes(self) -> int:
        """Number of captions."""
        return len(SHAPES) * len(COLOURS)

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption of each class; colours change fastest."""
        return tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)

    def load(self) -> ImageDataset:
        """The dataset as device arrays (made once per process)."""
        return _make(self)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Pictures `[n, size, size, 3]` uint8 and labels `[n]`."""
        num = self.num_train + self.num_test
        rng = np.random.RandomState(self.seed)
        labels = np.arange(num) % self.num_classes
        size, x, y, ground = rng.uniform(size=(4, num))
        size = SIZE[0] + size * (SIZE[1] - SIZE[0])
        # All of the shape is in the picture.
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
        """How much of each pixel the shape covers, `[n, size, size]` in [0, 1]."""
        centres = (np.arange(self.size) + 0.5) / self.size
        across = (centres[None, None, :] - x[:, None, None]) / size[:, None, None]
        down = (centres[None, :, None] - y[:, None, None]) / size[:, None, None]
        outside = distance(shapes, across, down) * size[:, None, None]
        return np.clip(0.5 - self.size * outside, 0.0, 1.0)


def distance(shapes: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Signed distance to the edge of a shape, negative inside, near the edge.

    All shapes lie in the square [-1, 1]².

    Args:
        shapes: `[n]`, which of `SHAPES`.
        across: `[n, 1, w]`, to the right of the centre, in half widths of the shape.
        down: `[n, h, 1]`, below the centre.

    Returns:
        `[n, h, w]` in half widths.
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
            # The apex is at the top; both slopes are 2 : 1.
            slope = (2.0 * np.abs(u) - 1.0 - v) / math.sqrt(5.0)
            out[rows] = np.maximum(slope, v - 1.0)
        else:
            u, v = np.broadcast_arrays(np.abs(u), np.abs(v))
            long, short = np.maximum(u, v), np.minimum(u, v)
            out[rows] = np.maximum(long - 1.0, short - 0.34)
    return out


@functools.cache
def _make(shapes: Shapes) -> ImageDataset:
    images, labels = shapes.pixels()
    train = shapes.num_train
    return partition(images, labels, (train * 8 // 10, train * 9 // 10, train))
