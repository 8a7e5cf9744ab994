"""Decoding of image files into arrays of one shape, grey or resized."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode by number of channels."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 1 << 26
"""Bound on an image's pixels: a file of a few bytes can declare any number."""


def decoder(
    shape: tuple[int | None, ...], *, size: int | None, grey: bool
) -> Callable[[bytes], np.ndarray]:
    """Returns a function from the bytes of an image file to its pixels.

    Args:
        shape: declared height, width and channels; None where any size is right.
        size: height and width to resize to, as in `TFDSImages`; None keeps the size.
        grey: whether colours become one channel first, as in `TFDSImages`.

    Returns:
        A function to `[height, width, channels]` uint8. It raises exceptions of any
        kind if the bytes are no such image.

    Raises:
        ValueError: if Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("decoding images needs Pillow: pip install pillow") from None
    height, width, channels = shape
    stored = MODES[channels or 3]
    mode = "L" if grey else stored

    def decode(content: bytes) -> np.ndarray:
        # Opening reads the header alone; pixels take memory from `convert` on.
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.height * image.width > MAX_PIXELS:
                raise ValueError(
                    f"image of {image.height}×{image.width} pixels; at most "
                    f"{MAX_PIXELS:,} are read"
                )
            if (height or image.height, width or image.width) != image.size[::-1]:
                raise ValueError(
                    f"image of {image.height}×{image.width} pixels instead of "
                    f"{height}×{width}"
                )
            # Two steps: an image stored in another mode first looks as declared.
            pixels = image.convert(stored).convert(mode)
        if size is not None and (pixels.height % size or pixels.width % size):
            pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
        array = np.asarray(pixels).reshape(pixels.height, pixels.width, -1)
        return array if size is None else shrink(array, size)

    return decode


def shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """Averages blocks of `[..., height, width, channels]` uint8 to a square of `size`.

    Halves are rounded up; exact, unlike Pillow's fixed-point sums.
    """
    *batch, height, width, channels = pixels.shape
    rows, columns = height // size, width // size
    blocks = pixels.reshape(*batch, size, rows, size, columns, channels)
    total = blocks.sum((-4, -2), dtype=np.int64)
    area = rows * columns
    return ((2 * total + area) // (2 * area)).astype(np.uint8)
