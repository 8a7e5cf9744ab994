"""Base of the diffusion stages: guessing the noise in what a frozen stage made."""

from __future__ import annotations

import abc
from typing import Any

import jax

from tasks.base import Batch, Loss, Params, Split, initial_loss
from tasks.data import images
from tasks.data.images import Images
from tasks.generation import diffusion
from tasks.modelled import ModelTask
from tasks.models.base import check_positive


class Denoising(ModelTask):
    """Weighted squared error of a guessed noise.

    Subclasses have the fields `model` and `batch_size`. The last layer of the model is
    zero at the start.
    """

    batch_size: int

    unit = "squared deviations of the noise, weighted"

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        # Roles of data on a disk are checked when the specs are first asked for.
        if not self.pictures.on_disk:
            self.check_roles()

    @property
    @abc.abstractmethod
    def pictures(self) -> Images:
        """Source of the pictures that the frozen stages encode."""

    @abc.abstractmethod
    def rows_of(self, dataset: Any) -> images.ImageDataset:
        """Returns the part of the dataset whose rows are drawn."""

    @abc.abstractmethod
    def examples(self, dataset: Any, rows: jax.Array | slice, split: Split) -> Batch:
        """Returns some rows of a split as a batch, without noise."""

    @abc.abstractmethod
    def corrupt(self, key: jax.Array, batch: Batch) -> tuple[Any, jax.Array]:
        """Returns the model's inputs for a batch with noise, and that noise."""

    @property
    def loss_at_chance(self) -> float:
        """Loss at initialization, averaged over 64 keys.

        Equal at every width and depth, as the model's last layer is zero. The stages
        before are trained at the first use.
        """
        base: Any = self.model
        at_base = self.at_width(base.base_width)
        return initial_loss(at_base.with_readout_init("zero"))

    def draw(self, dataset: Any, key: jax.Array, split: Split, num: int) -> jax.Array:
        """Draws the rows of `num` batches, `[num, B]` int32."""
        rows = self.rows_of(dataset)
        return images.draw_indices(rows, key, split, num, self.batch_size)

    def batch(self, dataset: Any, draw: jax.Array, split: Split) -> Batch:
        """Returns the examples of one draw, without noise."""
        return self.examples(dataset, draw, split)

    def whole(self, dataset: Any, split: Split) -> Batch:
        """Returns all examples of a split, without noise."""
        return self.examples(dataset, slice(None), split)

    def inputs(self, batch: Batch) -> Any:
        """Returns the model's inputs with one fixed noise."""
        return self.corrupt(jax.random.key(0), batch)[0]

    def loss(self, params: Params, key: jax.Array, batch: Batch) -> Loss:
        """Returns the weighted squared error `[]`, and that without weights."""
        inputs, noise = self.corrupt(key, batch)
        guess = self.model.apply(params, inputs, self.num_outputs)
        loss, error = diffusion.weighted_error(guess, noise, inputs.times)
        return loss, {"unweighted_loss": error}

    def activations(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """Returns the outputs of every layer by name, with the noise of the loss."""
        inputs, _ = self.corrupt(key, batch)
        return self.model.activations(params, inputs, self.num_outputs)
