"""What tasks share whose batches are rows of an image dataset.

Their data is an `ImageDataset`, or holds one as `images` beside what the task makes of
it. Of their draws the rows are known, so batches can be made of fewer different rows,
and the training images can stay on the host (`RowBatches` and `Streamable`).
"""

from __future__ import annotations

from typing import Any

import jax

from tasks.base import Split, repeat_rows
from tasks.data import images
from tasks.data.images import ImageDataset, ImageDraws, ImageSplit


class ImageRows:
    """Methods of such tasks; subclasses are frozen dataclasses."""

    batch_size: int
    """Images per batch, drawn with replacement."""

    def draw(self, dataset: Any, key: jax.Array, split: Split, num: int) -> ImageDraws:
        """Rows of `num` batches `[num, B]` int32."""
        rows = images.draw_indices(_images(dataset), key, split, num, self.batch_size)
        return ImageDraws(rows)

    def thin(self, draws: ImageDraws, rows: jax.Array) -> ImageDraws:
        """Fewer different images in each batch (see `RowBatches.thin`)."""
        return repeat_rows(draws, self.batch_size, rows)

    def resident(self, dataset: Any) -> Any:
        """All but the training images (see `Streamable.resident`)."""
        return _with_images(dataset, images.without_train(_images(dataset)))

    def fetch(self, dataset: Any, draws: ImageDraws) -> tuple[ImageSplit, ImageDraws]:
        """The training images of some draws (see `Streamable.fetch`)."""
        return images.fetch(_images(dataset), draws)

    def with_rows(self, resident: Any, rows: ImageSplit) -> Any:
        """A dataset of fetched images (see `Streamable.with_rows`)."""
        return _with_images(resident, _images(resident)._replace(train=rows))


def _images(dataset: Any) -> ImageDataset:
    return dataset if isinstance(dataset, ImageDataset) else dataset.images


def _with_images(dataset: Any, new: ImageDataset) -> Any:
    return new if isinstance(dataset, ImageDataset) else dataset._replace(images=new)
