"""Language modelling: predicting the next token of a text."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configuration.fields import configuration
from tasks.base import SPLITS, Batch, Loss, Params, Split, repeat_rows, shaped
from tasks.data import text
from tasks.data.label_noise import corrupt
from tasks.data.standard_library import StandardLibrary
from tasks.modelled import ModelTask
from tasks.models.base import Model, check_positive


@configuration
class LanguageModelling(ModelTask):
    """Mean softmax cross-entropy of a model over the next tokens of windows of text."""

    model: Model
    """The model that is trained; maps tokens `[B, L]` to logits `[B, L, V]`."""
    data: text.Text = StandardLibrary()
    """The tokenized text."""
    length: int = 64
    """Tokens of a window (`L`)."""
    batch_size: int = 32
    """Windows per batch (`B`), drawn with replacement."""
    evaluation_windows: int = 256
    """Most windows of a split in a final evaluation."""

    unit = "nats per token"

    def __post_init__(self) -> None:
        check_positive(self, "length", "batch_size", "evaluation_windows")
        if self.model.input_dtype != jnp.int32:
            raise ValueError(
                f"model = {type(self.model).__name__} takes no tokens; use "
                "Transformer, Recurrent, or a model with input_dtype = int32"
            )
        self.check_roles()

    @property
    def loss_at_chance(self) -> float:
        """ln V: the loss of the uniform guess over V tokens."""
        return math.log(self.data.vocab_size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Tokens of a window."""
        return (self.length,)

    @property
    def num_outputs(self) -> int:
        """Size of the vocabulary (`V`)."""
        return self.data.vocab_size

    @property
    def resolution(self) -> str:
        """Length of a window and size of the vocabulary."""
        return f"{self.length} of {self.num_outputs:,} tokens"

    def batch_shapes(self) -> text.TextBatch:
        """Returns the shapes of a training batch (see `Task.batch_shapes`)."""
        tokens = shaped(self.batch_size, self.length, dtype=jnp.int32)
        return text.TextBatch(tokens, tokens)

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns tokens `[B, L]`."""
        return batch.inputs

    def load_data(self) -> text.TextDataset:
        """Returns the text.

        Raises:
            ValueError: if a split is too short for one window.
        """
        dataset = self.data.load()
        for split in SPLITS:
            text.check_length(dataset, split, self.length)
        return dataset

    def draw(
        self, dataset: text.TextDataset, key: jax.Array, split: Split, num: int
    ) -> text.TextDraws:
        """Draws the starts of the windows of `num` batches, `[num, B]` int32."""
        size = self.batch_size
        starts = text.draw_starts(dataset, key, split, num, size, self.length)
        return text.TextDraws(starts)

    def batch(
        self, dataset: text.TextDataset, draw: text.TextDraws, split: Split
    ) -> text.TextBatch:
        """Returns tokens and the tokens that follow them, both `[B, L]` int32."""
        return text.gather(dataset, draw.at, split, self.length)

    def whole(self, dataset: text.TextDataset, split: Split) -> text.TextBatch:
        """Returns evenly spaced windows of a split that do not overlap."""
        starts = text.even_starts(dataset, split, self.evaluation_windows, self.length)
        return text.gather(dataset, starts, split, self.length)

    def thin(self, draws: text.TextDraws, rows: jax.Array) -> text.TextDraws:
        """Repeats the first windows of each batch (see `RowBatches.thin`)."""
        return repeat_rows(draws, self.batch_size, rows)

    def relabel(
        self,
        batch: text.TextBatch,
        draw: text.TextDraws,
        share: jax.Array,
        seed: jax.Array,
    ) -> text.TextBatch:
        """Replaces a share of the targets by other tokens (see `Labelled.relabel`).

        A position in the text has the same wrong target in every window that holds it.
        """
        places = draw.starts[:, None] + jnp.arange(self.length)[None]
        vocab_size = self.data.vocab_size
        targets = corrupt(batch.targets, places, vocab_size, share, seed)
        return batch._replace(targets=targets)

    def resident(self, dataset: text.TextDataset) -> text.TextDataset:
        """Returns all but the training text (see `Streamable.resident`)."""
        return dataset._replace(train=np.empty(0, dataset.train.dtype))

    def fetch(
        self, dataset: text.TextDataset, draws: text.TextDraws
    ) -> tuple[Any, text.TextDraws]:
        """Gathers the training windows of some draws (see `Streamable.fetch`)."""
        return text.fetch(dataset, draws, self.length)

    def with_rows(self, resident: text.TextDataset, rows: Any) -> text.TextDataset:
        """Returns a dataset of fetched windows (see `Streamable.with_rows`)."""
        return resident._replace(train=rows)

    def loss(self, params: Params, key: jax.Array, batch: text.TextBatch) -> Loss:
        """Returns the mean cross-entropy in nats per token, and the accuracy.

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
