"""Stage C as a task: guessing the noise in semantic codes, given a class.

The codes of all pictures are made once by the compressor of a frozen stage B and
normalized per channel. The dataset holds only codes and labels, neither pictures nor
latents. In training the class is sometimes left out, so that the same network also
guesses without one, which guidance needs.
"""

from __future__ import annotations

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from tasks.base import Params, Split, shaped
from tasks.data import images
from tasks.data.images import ImageDataset, Images, ImageSplit
from tasks.generation import diffusion
from tasks.generation.denoising import Denoising
from tasks.generation.encoding import encode_all
from tasks.generation.latent_diffusion import LatentDiffusion
from tasks.generation.pretraining import Pretraining
from tasks.models.code_prior import CodeInputs, CodePrior
from tasks.source import kept

DROPPED = 0.05
"""Share of examples whose class is left out."""


@final
@configuration
class SemanticPrior(Denoising):
    """Stage C: weighted squared error of the noise in codes, given the class."""

    model: CodePrior = CodePrior()
    """The model that is trained."""
    # Made when asked for: a task traces its model.
    stage_b: LatentDiffusion = dataclasses.field(default_factory=LatentDiffusion)
    """Stage that made the codes; it also has stage A and the data."""
    pretraining: Pretraining = Pretraining()
    """Training of stage B."""
    batch_size: int = 64
    """Codes per batch, drawn with replacement."""

    @property
    def pictures(self) -> Images:
        """Source of the pictures."""
        return self.stage_b.pictures

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a code.

        Raises:
            ValueError: if model and data differ in the number of classes.
        """
        classes = self.pictures.num_classes
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

    def batch_shapes(self) -> ImageSplit:
        """Returns the shapes of a training batch (see `Task.batch_shapes`)."""
        size = self.batch_size
        return ImageSplit(
            shaped(size, *self.input_shape), shaped(size, dtype=jnp.int32)
        )

    def load_data(self) -> ImageDataset:
        """Returns codes and labels (stages A and B are trained once, and kept)."""
        return _load(self.stage_b, self.pretraining)

    def rows_of(self, dataset: ImageDataset) -> ImageDataset:
        """Returns the codes."""
        return dataset

    def examples(
        self, dataset: ImageDataset, rows: jax.Array | slice, split: Split
    ) -> ImageSplit:
        """Returns normalized codes `[B, *code]` of some rows and their labels `[B]`."""
        return images.gather(dataset, rows, split)

    def corrupt(
        self, key: jax.Array, batch: ImageSplit
    ) -> tuple[CodeInputs, jax.Array]:
        """Returns the model's inputs with noise, and the noise in the codes."""
        keys = jax.random.split(key, 3)
        codes, labels = batch
        times = diffusion.draw_times(keys[0], len(codes))
        noise = jax.random.normal(keys[1], codes.shape)
        labels = drop_labels(keys[2], labels, self.model.num_classes)
        noisy = diffusion.diffuse(codes, noise, times)
        return CodeInputs(noisy, times, labels), noise


def drop_labels(key: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Replaces some labels `[B]` by `num_classes`, which stands for no class."""
    dropped = jax.random.bernoulli(key, DROPPED, labels.shape)
    return jnp.where(dropped, num_classes, labels)


def encode_codes(stage_b: LatentDiffusion, params: Params) -> ImageDataset:
    """Returns the dataset of stage C, made by a stage B with these parameters."""
    pictures = stage_b.stage_a.load_data().images
    return encode_all(pictures, lambda x: stage_b.model.compress(params, x))


@kept
def _load(stage_b: LatentDiffusion, pretraining: Pretraining) -> ImageDataset:
    return encode_codes(stage_b, pretraining.train(stage_b))
