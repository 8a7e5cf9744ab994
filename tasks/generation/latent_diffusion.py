"""Stage B as a task: guessing the noise in the latents of a frozen stage A.

The latents of all pictures are made once, by a pretrained encoder (`pretraining.py`),
and normalized per channel like images. Beside the noisy latents the network sees a
semantic code, which its compressor makes of the picture. In training the code is
sometimes dropped, for guidance, and sometimes noisy, since the codes of stage C are
not exact.

(The paper's stage B is told the caption too. Here the code has room for all that a
caption of these pictures says.)
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, final

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from tasks.base import Params, Split, shaped
from tasks.data import images
from tasks.data.images import ImageDataset, Images
from tasks.generation import diffusion
from tasks.generation.denoising import Denoising
from tasks.generation.encoding import encode_all
from tasks.generation.pretraining import Pretraining
from tasks.generation.vector_quantization import VectorQuantization
from tasks.models.latent_denoiser import LatentDenoiser, LatentInputs
from tasks.models.vq_autoencoder import COMPRESSION
from tasks.source import kept

DROPPED = 0.05
"""Share of codes that are set to zero."""
NOISED = 0.3
"""Share of the others to which noise is added."""
NOISIEST = 0.5
"""Largest time of that noise; times are uniform from 0."""


class LatentDataset(NamedTuple):
    """Pictures, and the latents of each."""

    images: ImageDataset
    latents: ImageDataset  # its "images" are float32 latents


class LatentBatch(NamedTuple):
    """A batch; h and w are those of the latents."""

    images: jax.Array  # [B, height, width, channels] normalized
    latents: jax.Array  # [B, h, w, latent_channels] normalized


@final
@configuration
class LatentDiffusion(Denoising):
    """Stage B: weighted squared error of the noise in latents, given a code."""

    model: LatentDenoiser = LatentDenoiser()
    """The model that is trained, compressor and denoiser."""
    # Made when asked for: a task traces its model.
    stage_a: VectorQuantization = dataclasses.field(default_factory=VectorQuantization)
    """Stage that made the latents; it also has the data."""
    pretraining: Pretraining = Pretraining()
    """Training of stage A."""
    batch_size: int = 32
    """Pictures per batch, drawn with replacement."""

    @property
    def pictures(self) -> Images:
        """Source of the pictures."""
        return self.stage_a.data

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a picture."""
        return self.stage_a.input_shape

    @property
    def num_outputs(self) -> int:
        """Channels of a latent."""
        return self.stage_a.model.latent_channels

    def batch_shapes(self) -> LatentBatch:
        """Returns the shapes of a training batch (see `Task.batch_shapes`)."""
        height, width, _ = self.input_shape
        latent = (height // COMPRESSION, width // COMPRESSION, self.num_outputs)
        size = self.batch_size
        return LatentBatch(shaped(size, *self.input_shape), shaped(size, *latent))

    def load_data(self) -> LatentDataset:
        """Returns pictures and their latents (stage A is trained once, and kept)."""
        return _load(self.stage_a, self.pretraining)

    def rows_of(self, dataset: LatentDataset) -> ImageDataset:
        """Returns the pictures."""
        return dataset.images

    def examples(
        self, dataset: LatentDataset, rows: jax.Array | slice, split: Split
    ) -> LatentBatch:
        """Returns the pictures and latents of some rows, without noise."""
        return LatentBatch(
            images.gather(dataset.images, rows, split).images,
            images.gather(dataset.latents, rows, split).images,
        )

    def corrupt(
        self, key: jax.Array, batch: LatentBatch
    ) -> tuple[LatentInputs, jax.Array]:
        """Returns the model's inputs with noise, and the noise in the latents."""
        keys = jax.random.split(key, 4)
        times = diffusion.draw_times(keys[0], len(batch.latents))
        noise = jax.random.normal(keys[1], batch.latents.shape)
        scale, spread = draw_code_noise(keys[2], len(batch.latents))
        shape = (len(batch.latents), *self.model.code_shape(self.input_shape))
        code_noise = jax.random.normal(keys[3], shape)
        inputs = LatentInputs(
            noisy=diffusion.diffuse(batch.latents, noise, times),
            times=times,
            images=batch.images,
            code_scale=scale,
            code_noise=code_noise
            * jnp.broadcast_to(spread[:, None, None, None], shape),
        )
        return inputs, noise


def draw_code_noise(key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Draws factors of codes and deviations of the noise added to them, both `[num]`.

    A dropped code has factor and noise 0; an unchanged one has factor 1 and noise 0.
    """
    keys = jax.random.split(key, 3)
    dropped = jax.random.bernoulli(keys[0], DROPPED, (num,))
    noised = jax.random.bernoulli(keys[1], NOISED, (num,))
    times = jax.random.uniform(keys[2], (num,), maxval=NOISIEST)
    signal = jnp.where(noised, diffusion.alpha_bar(times), 1.0)
    kept = jnp.where(dropped, 0.0, 1.0)
    return kept * jnp.sqrt(signal), kept * jnp.sqrt(1.0 - signal)


def encode_latents(stage_a: VectorQuantization, params: Params) -> LatentDataset:
    """Returns the dataset of stage B, encoded by a stage A with these parameters."""
    pictures = stage_a.load_data().images
    return LatentDataset(
        pictures, encode_all(pictures, lambda x: stage_a.encode(params, x))
    )


@kept
def _load(stage_a: VectorQuantization, pretraining: Pretraining) -> LatentDataset:
    return encode_latents(stage_a, pretraining.train(stage_a))
