"""Encoding of a whole dataset by a frozen network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import SPLITS, Split
from tasks.data.images import ImageDataset, ImageSplit, gather

ROWS_AT_ONCE = 250


def encode_all(
    pictures: ImageDataset, encode: Callable[[jax.Array], jax.Array]
) -> ImageDataset:
    """Returns the codes of all pictures, as images with the codes' channels.

    Mean and deviation of each channel are over the training split and all positions, so
    `gather` normalizes codes as it does images. A constant channel has deviation 1.

    Args:
        pictures: the images.
        encode: maps normalized images `[B, height, width, channels]` to
            `[B, h, w, C]`.

    Returns:
        A dataset of float32 "images" with the labels of the pictures.
    """
    # Concrete even where a caller is being traced, for callers keep the result.
    with jax.ensure_compile_time_eval():
        run = jax.jit(encode)
        codes = {name: _encode(run, pictures, name) for name in SPLITS}
        train = codes["train"].astype(np.float64).reshape(-1, codes["train"].shape[-1])
        deviations = [float(std) or 1.0 for std in train.std(0)]
        return ImageDataset(
            **{
                name: ImageSplit(jnp.array(codes[name]), pictures.split(name).labels)
                for name in SPLITS
            },
            mean=tuple(map(jnp.float32, train.mean(0))),
            std=tuple(map(jnp.float32, deviations)),
        )


def _encode(
    run: Callable[[jax.Array], jax.Array], pictures: ImageDataset, split: Split
) -> np.ndarray:
    """Encodes a split in pieces of the same number of rows."""
    num = len(pictures.split(split).labels)
    parts = []
    for begin in range(0, num, ROWS_AT_ONCE):
        # The last piece is filled up with its last row.
        rows = np.minimum(np.arange(begin, begin + ROWS_AT_ONCE), num - 1)
        made = run(gather(pictures, jnp.asarray(rows), split).images)
        parts.append(np.asarray(made)[: num - begin])
    return np.concatenate(parts)
