"""Language modelling: a model and a text make a task."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from parametrization.rules import Rules
from tasks.base import SPLITS, Params, Split
from tasks.data import text
from tasks.data.standard_library import StandardLibrary
from tasks.models.base import Model


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """Mean softmax cross-entropy of a model over the next tokens of windows of text."""

    model: Model
    """The model that is trained: tokens `[B, L]` to logits `[B, L, V]`."""
    data: text.Text = StandardLibrary()
    """The tokenized text."""
    length: int = 64
    """Tokens of a window (`L`)."""
    batch_size: int = 32
    """Windows per batch (`B`), drawn with replacement."""
    evaluation_windows: int = 256
    """Windows that stand for the whole of a split in final evaluations, at most."""

    def __post_init__(self) -> None:
        for name in ("length", "batch_size", "evaluation_windows"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} = {value} must be positive")
        self.specs()  # a parameter without a role is an error here and now

    @property
    def loss_at_chance(self) -> float:
        """ln V: the loss of the uniform guess over V tokens."""
        return math.log(self.data.vocab_size)

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
        return self.model.init(key, (self.length,), self.data.vocab_size)

    def specs(self) -> Any:
        """Specs of the parameters (see `Task.specs`)."""
        return self.model.specs((self.length,), self.data.vocab_size)

    def load_data(self) -> text.TextDataset:
        """The dataset (see `Task.load_data`).

        Raises:
            ValueError: if a split is too short for one window.
        """
        dataset = self.data.load()
        for split in SPLITS:
            text.check_length(dataset, split, self.length)
        return dataset

    def draw(
        self, dataset: text.TextDataset, key: jax.Array, split: Split, num: int
    ) -> jax.Array:
        """Starts of the windows of `num` batches, `[num, B]` int32."""
        return text.draw_starts(dataset, key, split, num, self.batch_size, self.length)

    def batch(
        self, dataset: text.TextDataset, draw: jax.Array, split: Split
    ) -> text.TextBatch:
        """Tokens `[B, L]` and the ones that follow them `[B, L]`, int32."""
        return text.gather(dataset, draw, split, self.length)

    def whole(self, dataset: text.TextDataset, split: Split) -> text.TextBatch:
        """Evenly spaced windows of a split that do not overlap."""
        starts = text.even_starts(dataset, split, self.evaluation_windows, self.length)
        return text.gather(dataset, starts, split, self.length)

    def loss(
        self, params: Params, key: jax.Array, batch: text.TextBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross-entropy over `[B, L]` in nats per token, and the accuracy.

        Raises:
            ValueError: if the model does not make logits `[B, L, V]`.
        """
        del key
        logits = self.model.apply(params, batch.inputs, self.data.vocab_size)
        needed = (*batch.targets.shape, self.data.vocab_size)
        if logits.shape != needed:
            raise ValueError(
                f"model {type(self.model).__name__} makes outputs of shape "
                f"{logits.shape}, but one logit per token of the vocabulary and place "
                f"is {needed}"
            )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch.targets)
        return jnp.mean(losses), {"accuracy": accuracy}

    def activations(
        self, params: Params, key: jax.Array, batch: text.TextBatch
    ) -> dict[str, jax.Array]:
        """What every layer computes (see `Task.activations`)."""
        del key
        return self.model.activations(params, batch.inputs, self.data.vocab_size)
