"""Stage B as a task: guessing the noise in the latents of a frozen stage A.

The latents of all pictures are made once, by an encoder that was trained before
(`pretraining.py`), and normalized per channel like images. Beside the noisy latents the
network is given the semantic code that it makes itself of the picture. In training the
code is sometimes dropped, so that the network also knows pictures of no code in
particular, and sometimes noisy, for what stage C will give it is not exact.

(The paper's stage B is told the caption too. Here the code has room for all that a
caption of these pictures says.)
"""

from __future__ import annotations

import functools
from typing import NamedTuple, final

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from tasks.base import Params, Split
from tasks.data import images
from tasks.data.images import ImageDataset
from tasks.generation import diffusion
from tasks.generation.encoding import encode_all
from tasks.generation.pretraining import Pretraining
from tasks.generation.vector_quantization import VectorQuantization
from tasks.modelled import ModelTask
from tasks.models.base import check_positive
from tasks.models.latent_denoiser import LatentDenoiser, LatentInputs
from tasks.synthetic.base import initial_loss

DROPPED = 0.05
"""Share of codes that are set to zero."""
NOISED = 0.3
"""Share of the others to which noise is added."""
NOISIEST = 0.5
"""Times of that noise are uniform from 0 to this."""


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
class LatentDiffusion(ModelTask):
    """Stage B: weighted squared error of the noise in latents, given a code."""

    model: LatentDenoiser = LatentDenoiser()
    """The model that is trained, compressor and denoiser."""
    stage_a: VectorQuantization = VectorQuantization()
    """What made the latents; it also has the data."""
    pretraining: Pretraining = Pretraining()
    """How stage A was trained."""
    batch_size: int = 32
    """Pictures per batch, drawn with replacement."""

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        if not self.stage_a.data.on_disk:  # else when the specs are first asked for
            self.check_roles()

    @property
    def loss_at_chance(self) -> float:
        """The loss at initialization, averaged over 64 keys.

        The last layer is zero then, so it is that of every width and depth. Stage A is
        trained at the first use.
        """
        return initial_loss(self.at_width(self.model.base_width))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a picture."""
        return self.stage_a.input_shape

    @property
    def num_outputs(self) -> int:
        """Channels of a latent."""
        return self.stage_a.model.latent_channels

    def inputs(self, batch: LatentBatch) -> LatentInputs:
        """What the model is given of a batch, with one fixed noise."""
        return self.corrupt(jax.random.key(0), batch)[0]

    def load_data(self) -> LatentDataset:
        """Pictures and their latents (stage A is trained once, and kept)."""
        return _load(self.stage_a, self.pretraining)

    def draw(
        self, dataset: LatentDataset, key: jax.Array, split: Split, num: int
    ) -> jax.Array:
        """Rows of `num` batches, `[num, B]` int32."""
        return images.draw_indices(dataset.images, key, split, num, self.batch_size)

    def batch(
        self, dataset: LatentDataset, draw: jax.Array | slice, split: Split
    ) -> LatentBatch:
        """The pictures and latents of some rows, without noise."""
        return LatentBatch(
            images.gather(dataset.images, draw, split).images,
            images.gather(dataset.latents, draw, split).images,
        )

    def whole(self, dataset: LatentDataset, split: Split) -> LatentBatch:
        """All examples of a split."""
        return self.batch(dataset, slice(None), split)

    def corrupt(
        self, key: jax.Array, batch: LatentBatch
    ) -> tuple[LatentInputs, jax.Array]:
        """Adds noise to a batch: what the model sees, and the noise in the latents."""
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

    def loss(
        self, params: Params, key: jax.Array, batch: LatentBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted squared error `[]`, and that without weights."""
        inputs, noise = self.corrupt(key, batch)
        guess = self.model.apply(params, inputs, self.num_outputs)
        loss, error = diffusion.weighted_error(guess, noise, inputs.times)
        return loss, {"unweighted_loss": error}

    def activations(
        self, params: Params, key: jax.Array, batch: LatentBatch
    ) -> dict[str, jax.Array]:
        """What every layer computes, with the noise of the loss."""
        inputs, _ = self.corrupt(key, batch)
        return self.model.activations(params, inputs, self.num_outputs)


def draw_code_noise(key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Factors on codes and deviations of the noise on them, both `[num]`.

    A dropped code has factor and noise 0; one that is left alone has factor 1 and
    noise 0.
    """
    keys = jax.random.split(key, 3)
    dropped = jax.random.bernoulli(keys[0], DROPPED, (num,))
    noised = jax.random.bernoulli(keys[1], NOISED, (num,))
    times = jax.random.uniform(keys[2], (num,), maxval=NOISIEST)
    signal = jnp.where(noised, diffusion.alpha_bar(times), 1.0)
    kept = jnp.where(dropped, 0.0, 1.0)
    return kept * jnp.sqrt(signal), kept * jnp.sqrt(1.0 - signal)


def encode_latents(stage_a: VectorQuantization, params: Params) -> LatentDataset:
    """The dataset of stage B, made by a stage A with these parameters."""
    pictures = stage_a.load_data().images
    return LatentDataset(
        pictures, encode_all(pictures, lambda x: stage_a.encode(params, x))
    )


@functools.cache
def _load(stage_a: VectorQuantization, pretraining: Pretraining) -> LatentDataset:
    return encode_latents(stage_a, pretraining.train(stage_a))
