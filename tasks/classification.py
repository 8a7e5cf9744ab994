"""Classification: a model and a dataset make a task."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from parametrization.rules import Rules
from tasks.base import Batch, Params, Split
from tasks.data import images
from tasks.data.embedded import Digits
from tasks.models.mlp import MLP


@dataclasses.dataclass(frozen=True)
class ImageClassification:
    """Mean softmax cross-entropy of a model over batches of labelled images."""

    model: MLP = MLP()
    """The model that is trained."""
    data: images.Images = Digits()
    """The labelled images."""
    batch_size: int = 128
    """Images per batch, drawn with replacement."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size} must be positive")
        self.specs()  # a parameter without a role is an error here and now

    @property
    def loss_at_chance(self) -> float:
        """ln C: the loss of the uniform guess over C classes."""
        return math.log(self.data.num_classes)

    @property
    def width(self) -> int:
        """Width of the model (see `Task.width`)."""
        return self.model.width

    @property
    def depth(self) -> int:
        """Depth of the model (see `Task.depth`)."""
        return self.model.depth

    def at_width(self, width: int) -> Self:
        """The same data and a model of another width."""
        return dataclasses.replace(self, model=self.model.at_width(width))

    def at_depth(self, depth: int) -> Self:
        """The same data and a model of another depth."""
        return dataclasses.replace(self, model=self.model.at_depth(depth))

    def with_rules(self, rules: Rules) -> Self:
        """The same data and the model in another parametrization."""
        return dataclasses.replace(self, model=self.model.with_rules(rules))

    def init(self, key: jax.Array) -> Params:
        """Initial parameters (see `Task.init`)."""
        return self.model.init(key, self.data.image_shape, self.data.num_classes)

    def specs(self) -> Any:
        """Specs of the parameters (see `Task.specs`)."""
        return self.model.specs(self.data.image_shape, self.data.num_classes)

    def load_data(self) -> images.ImageDataset:
        """The dataset (see `Task.load_data`)."""
        return self.data.load()

    def draw(
        self, dataset: images.ImageDataset, key: jax.Array, split: Split, num: int
    ) -> jax.Array:
        """Rows of `num` batches, `[num, B]` int32."""
        return images.draw_indices(dataset, key, split, num, self.batch_size)

    def batch(
        self, dataset: images.ImageDataset, draw: jax.Array, split: Split
    ) -> Batch:
        """Normalized images `[B, height, width, channels]` and labels `[B]`."""
        return images.gather(dataset, draw, split)

    def whole(self, dataset: images.ImageDataset, split: Split) -> Batch:
        """All examples of a split."""
        return images.gather(dataset, slice(None), split)

    def loss(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross-entropy `[]` in nats, and the accuracy."""
        del key
        logits = self.model.apply(params, batch.images, self.data.num_classes)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch.labels)
        return jnp.mean(losses), {"accuracy": accuracy}

    def activations(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """What every layer computes (see `Task.activations`)."""
        del key
        return self.model.activations(params, batch.images, self.data.num_classes)
