"""Stage C as a task: guessing the noise in semantic codes, given a class.

The codes of all pictures are made once by the compressor of a frozen stage B, and
normalized per channel. Nothing else of the stages before is in the dataset: the loss
knows neither pictures nor latents. In training the class is sometimes left out, so that
the same network also guesses without one, which guidance needs.
"""

from __future__ import annotations

import functools
from typing import final

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from tasks.base import Params, Split
from tasks.data import images
from tasks.data.images import ImageDataset, ImageSplit
from tasks.generation import diffusion
from tasks.generation.encoding import encode_all
from tasks.generation.latent_diffusion import LatentDiffusion
from tasks.generation.pretraining import Pretraining
from tasks.modelled import ModelTask
from tasks.models.base import check_positive
from tasks.models.code_prior import CodeInputs, CodePrior
from tasks.synthetic.base import initial_loss

DROPPED = 0.05
"""Share of examples whose class is left out."""


@final
@configuration
class SemanticPrior(ModelTask):
    """Stage C: weighted squared error of the noise in codes, given the class."""

    model: CodePrior = CodePrior()
    """The model that is trained."""
    stage_b: LatentDiffusion = LatentDiffusion()
    """What made the codes; it also has stage A and the data."""
    pretraining: Pretraining = Pretraining()
    """How stage B was trained."""
    batch_size: int = 64
    """Codes per batch, drawn with replacement."""

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        if not self.stage_b.stage_a.data.on_disk:  # else when the specs are asked for
            self.check_roles()

    @property
    def loss_at_chance(self) -> float:
        """The loss at initialization, averaged over 64 keys.

        The last layer is zero then, so it is that of every width and depth. Stages A
        and B are trained at the first use.
        """
        return initial_loss(self.at_width(self.model.base_width))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a code.

        Raises:
            ValueError: if the model has another number of classes than the data.
        """
        classes = self.stage_b.stage_a.data.num_classes
        if self.model.num_classes != classes:
            raise ValueError(
                f"num_classes = {self.model.num_classes} of the model must be that of "
                f"the data, {classes}"
            )
        return self.stage_b.model.code_shape(self.stage_b.input_shape)

    @property
    def num_outputs(self) -> int:
        """Channels of a code."""
        return self.stage_b.model.code_channels

    def inputs(self, batch: ImageSplit) -> CodeInputs:
        """What the model is given of a batch, with one fixed noise."""
        return self.corrupt(jax.random.key(0), batch)[0]

    def load_data(self) -> ImageDataset:
        """Codes and labels (stages A and B are trained once, and kept)."""
        return _load(self.stage_b, self.pretraining)

    def draw(
        self, dataset: ImageDataset, key: jax.Array, split: Split, num: int
    ) -> jax.Array:
        """Rows of `num` batches, `[num, B]` int32."""
        return images.draw_indices(dataset, key, split, num, self.batch_size)

    def batch(
        self, dataset: ImageDataset, draw: jax.Array | slice, split: Split
    ) -> ImageSplit:
        """Normalized codes `[B, *code]` of some rows and their labels `[B]`."""
        return images.gather(dataset, draw, split)

    def whole(self, dataset: ImageDataset, split: Split) -> ImageSplit:
        """All examples of a split."""
        return self.batch(dataset, slice(None), split)

    def corrupt(
        self, key: jax.Array, batch: ImageSplit
    ) -> tuple[CodeInputs, jax.Array]:
        """Adds noise to a batch: what the model sees, and the noise in it."""
        keys = jax.random.split(key, 3)
        codes, labels = batch
        times = diffusion.draw_times(keys[0], len(codes))
        noise = jax.random.normal(keys[1], codes.shape)
        labels = drop_labels(keys[2], labels, self.model.num_classes)
        noisy = diffusion.diffuse(codes, noise, times)
        return CodeInputs(noisy, times, labels), noise

    def loss(
        self, params: Params, key: jax.Array, batch: ImageSplit
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted squared error `[]`, and that without weights."""
        inputs, noise = self.corrupt(key, batch)
        guess = self.model.apply(params, inputs, self.num_outputs)
        loss, error = diffusion.weighted_error(guess, noise, inputs.times)
        return loss, {"unweighted_loss": error}

    def activations(
        self, params: Params, key: jax.Array, batch: ImageSplit
    ) -> dict[str, jax.Array]:
        """What every layer computes, with the noise of the loss."""
        inputs, _ = self.corrupt(key, batch)
        return self.model.activations(params, inputs, self.num_outputs)


def drop_labels(key: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Labels `[B]`, some of them replaced by `num_classes`, which is none."""
    dropped = jax.random.bernoulli(key, DROPPED, labels.shape)
    return jnp.where(dropped, num_classes, labels)


def encode_codes(stage_b: LatentDiffusion, params: Params) -> ImageDataset:
    """The dataset of stage C, made by a stage B with these parameters."""
    pictures = stage_b.stage_a.load_data().images
    return encode_all(pictures, lambda x: stage_b.model.compress(params, x))


@functools.cache
def _load(stage_b: LatentDiffusion, pretraining: Pretraining) -> ImageDataset:
    return encode_codes(stage_b, pretraining.train(stage_b))
