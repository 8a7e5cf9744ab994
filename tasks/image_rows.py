"""Tasks whose batches are rows of an image dataset.

The dataset is an `ImageDataset`, or has one as `images` beside what the task makes of
it. Since the rows of a draw are known, batches can be made of fewer different rows, and
the training images can stay on the host (`RowBatches` and `Streamable`).
"""

from __future__ import annotations

import abc
from typing import Any

import jax

from tasks.base import Batch, Split, repeat_rows
from tasks.data import images
from tasks.data.images import ImageDataset, ImageDraws, ImageSplit
from tasks.data.label_noise import corrupt
from tasks.modelled import ModelTask
from tasks.models.base import check_positive


class ImageTask(ModelTask):
    """A model on images; subclasses have the fields `model`, `data`, `batch_size`."""

    data: images.Images
    batch_size: int

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        # Roles of data on a disk are checked when the specs are first asked for.
        if not self.data.on_disk:
            self.check_roles()

    @abc.abstractmethod
    def examples(self, dataset: Any, rows: jax.Array | slice, split: Split) -> Batch:
        """Returns some rows of a split as a batch."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image."""
        return self.data.image_shape

    def draw(self, dataset: Any, key: jax.Array, split: Split, num: int) -> ImageDraws:
        """Draws the rows of `num` batches `[num, B]` int32."""
        rows = images.draw_indices(_images(dataset), key, split, num, self.batch_size)
        return ImageDraws(rows)

    def batch(self, dataset: Any, draw: ImageDraws, split: Split) -> Batch:
        """Returns the examples of one draw."""
        return self.examples(dataset, draw.at, split)

    def whole(self, dataset: Any, split: Split) -> Batch:
        """Returns all examples of a split."""
        return self.examples(dataset, slice(None), split)

    def thin(self, draws: ImageDraws, rows: jax.Array) -> ImageDraws:
        """Repeats the first images of each batch (see `RowBatches.thin`)."""
        return repeat_rows(draws, self.batch_size, rows)

    def resident(self, dataset: Any) -> Any:
        """Returns all but the training images (see `Streamable.resident`)."""
        return _with_images(dataset, images.without_train(_images(dataset)))

    def fetch(self, dataset: Any, draws: ImageDraws) -> tuple[ImageSplit, ImageDraws]:
        """Gathers the training images of some draws (see `Streamable.fetch`)."""
        return images.fetch(_images(dataset), draws)

    def with_rows(self, resident: Any, rows: ImageSplit) -> Any:
        """Returns a dataset of fetched images (see `Streamable.with_rows`)."""
        return _with_images(resident, _images(resident)._replace(train=rows))


class LabelledImageTask(ImageTask):
    """An image task whose batches have `images` and the class of each as `labels`."""

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns normalized images `[B, height, width, channels]`."""
        return batch.images

    def relabel(
        self, batch: Batch, draw: ImageDraws, share: jax.Array, seed: jax.Array
    ) -> Batch:
        """Replaces a share of the labels by other classes (see `Labelled.relabel`)."""
        labels = corrupt(batch.labels, draw.rows, self.data.num_classes, share, seed)
        return batch._replace(labels=labels)


def _images(dataset: Any) -> ImageDataset:
    return dataset if isinstance(dataset, ImageDataset) else dataset.images


def _with_images(dataset: Any, new: ImageDataset) -> Any:
    return new if isinstance(dataset, ImageDataset) else dataset._replace(images=new)
