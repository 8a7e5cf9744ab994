"""Classification: a model and a dataset make a task."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from tasks.base import Batch, Params, Split
from tasks.data import images
from tasks.data.augmentation import Augmentation
from tasks.data.embedded import Digits
from tasks.data.images import ImageDataset, ImageDraws
from tasks.data.label_noise import corrupt
from tasks.image_rows import ImageRows
from tasks.modelled import ModelTask
from tasks.models.base import Model, check_positive
from tasks.models.mlp import MLP

_AUGMENTATION = 1
"""Folded into the key of a draw; the rows use the key itself."""


@configuration
class ImageClassification(ImageRows, ModelTask):
    """Mean softmax cross-entropy of a model over batches of labelled images."""

    model: Model = MLP()
    """The model that is trained."""
    data: images.Images = Digits()
    """The labelled images."""
    batch_size: int = 128
    """Images per batch, drawn with replacement."""
    augmentation: Augmentation = Augmentation()
    """Random crops and mirror images of the training batches; none by default."""

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        if not self.data.on_disk:  # else when the specs are first asked for
            self.check_roles()

    @property
    def loss_at_chance(self) -> float:
        """ln C: the loss of the uniform guess over C classes."""
        return math.log(self.data.num_classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the model (see `ModelTask.input_shape`)."""
        return self.data.image_shape

    @property
    def num_outputs(self) -> int:
        """Outputs of the model (see `ModelTask.num_outputs`)."""
        return self.data.num_classes

    def inputs(self, batch: Batch) -> jax.Array:
        """What the model is given of a batch (see `ModelTask.inputs`)."""
        return batch.images

    def load_data(self) -> ImageDataset:
        """The dataset (see `Task.load_data`)."""
        return self.data.load()

    def draw(
        self, dataset: ImageDataset, key: jax.Array, split: Split, num: int
    ) -> ImageDraws:
        """Rows of `num` batches `[num, B]` int32, and how each image is changed."""
        draws = super().draw(dataset, key, split, num)
        if split != "train" or not self.augmentation.active:
            return draws
        changes = jax.random.fold_in(key, _AUGMENTATION)
        changes = self.augmentation.draw(changes, num, self.batch_size)
        return draws._replace(changes=changes)

    def batch(self, dataset: ImageDataset, draw: ImageDraws, split: Split) -> Batch:
        """Normalized images `[B, height, width, channels]` and labels `[B]`."""
        batch = images.gather(dataset, draw.at, split)
        if draw.changes is None:
            return batch
        changed = self.augmentation.apply(batch.images, draw.changes)
        return batch._replace(images=changed)

    def whole(self, dataset: ImageDataset, split: Split) -> Batch:
        """All examples of a split."""
        return images.gather(dataset, slice(None), split)

    def relabel(
        self, batch: Batch, draw: ImageDraws, share: jax.Array, seed: jax.Array
    ) -> Batch:
        """A share of the labels is another class (see `Labelled.relabel`)."""
        labels = corrupt(batch.labels, draw.rows, self.data.num_classes, share, seed)
        return batch._replace(labels=labels)

    def loss(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross-entropy `[]` in nats, and the accuracy."""
        del key
        logits = self.model.apply(params, batch.images, self.data.num_classes)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch.labels)
        return jnp.mean(losses), {"accuracy": accuracy}
