"""Image classification."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from tasks.base import Batch, Loss, Params, Split, shaped
from tasks.data import images
from tasks.data.augmentation import Augmentation
from tasks.data.embedded import Digits
from tasks.data.images import ImageDataset, ImageDraws, ImageSplit
from tasks.image_rows import LabelledImageTask
from tasks.models.base import Model
from tasks.models.mlp import MLP

_AUGMENTATION = 1
"""Folded into the key of a draw; rows are drawn from the key itself."""


@configuration
class ImageClassification(LabelledImageTask):
    """Mean softmax cross-entropy of a model over batches of labelled images."""

    model: Model = MLP()
    """The model that is trained."""
    data: images.Images = Digits()
    """The labelled images."""
    batch_size: int = 128
    """Images per batch, drawn with replacement."""
    augmentation: Augmentation = Augmentation()
    """Random crops and mirror images of training batches; none by default."""

    unit = "nats"

    @property
    def loss_at_chance(self) -> float:
        """ln C: the loss of the uniform guess over C classes."""
        return math.log(self.data.num_classes)

    @property
    def num_outputs(self) -> int:
        """Number of classes (`C`)."""
        return self.data.num_classes

    def load_data(self) -> ImageDataset:
        """Returns the images."""
        return self.data.load()

    def draw(
        self, dataset: ImageDataset, key: jax.Array, split: Split, num: int
    ) -> ImageDraws:
        """Draws the rows of `num` batches `[num, B]` int32, and their augmentation."""
        draws = super().draw(dataset, key, split, num)
        if split != "train" or not self.augmentation.active:
            return draws
        changes = jax.random.fold_in(key, _AUGMENTATION)
        changes = self.augmentation.draw(changes, num, self.batch_size)
        return draws._replace(changes=changes)

    def batch(self, dataset: ImageDataset, draw: ImageDraws, split: Split) -> Batch:
        """Returns the images of one draw, augmented, and their labels."""
        batch = self.examples(dataset, draw.at, split)
        if draw.changes is None:
            return batch
        changed = self.augmentation.apply(batch.images, draw.changes)
        return batch._replace(images=changed)

    def examples(
        self, dataset: ImageDataset, rows: jax.Array | slice, split: Split
    ) -> ImageSplit:
        """Returns normalized images and their labels `[B]`."""
        return images.gather(dataset, rows, split)

    def batch_shapes(self) -> ImageSplit:
        """Returns the shapes of a training batch (see `Task.batch_shapes`)."""
        size = self.batch_size
        return ImageSplit(
            shaped(size, *self.input_shape), shaped(size, dtype=jnp.int32)
        )

    def loss(self, params: Params, key: jax.Array, batch: Batch) -> Loss:
        """Returns the mean cross-entropy `[]` in nats, and the accuracy."""
        del key
        logits = self.model.apply(params, batch.images, self.data.num_classes)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch.labels)
        return jnp.mean(losses), {"accuracy": accuracy}
