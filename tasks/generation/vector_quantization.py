"""Stage A as a task: reconstruction through a codebook.

The loss is a sum of three means: the squared error of normalized pixels, the squared
distance of the chosen entries from the latents (which moves only entries), and
`commitment` times the same distance (which moves only latents). As in
`tasks.autoencoding`, outputs are added to the best constant image, so the first term
starts at the loss at chance. The other two start at the squared distance of the nearest
entry from 0, about a hundredth of it.

Reference: van den Oord et al., VQ-VAE, arXiv:1711.00937, Equation 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from tasks.autoencoding import Pictures, load_pictures
from tasks.base import Loss, Params, Split, shaped
from tasks.data import images
from tasks.data.images import Images
from tasks.data.shapes import Shapes
from tasks.image_rows import ImageTask
from tasks.models.vq_autoencoder import VQAutoEncoder, perplexity


class Reconstructions(NamedTuple):
    """A batch."""

    inputs: jax.Array  # [B, height, width, channels] normalized
    targets: jax.Array  # the same minus the best constant image


@final
@configuration
class VectorQuantization(ImageTask):
    """Stage A: squared error per pixel, plus distances of latents from entries."""

    model: VQAutoEncoder = VQAutoEncoder()
    """The model that is trained."""
    data: Images = Shapes()
    """The images; 4 divides their height and their width."""
    batch_size: int = 32
    """Images per batch, drawn with replacement."""
    commitment: float = 0.25
    """Weight of the distance between latents and entries in the latents' loss."""

    unit = "squared deviations"

    def __post_init__(self) -> None:
        if not 0.0 < self.commitment <= 100.0:
            raise ValueError(f"commitment = {self.commitment} must lie in (0, 100]")
        super().__post_init__()

    @property
    def loss_at_chance(self) -> float:
        """Squared error of the best constant image on the training split."""
        return load_pictures(self.data, "mse")[1]

    @property
    def num_outputs(self) -> int:
        """Channels of an image."""
        return self.data.image_shape[-1]

    def inputs(self, batch: Reconstructions) -> jax.Array:
        """Returns normalized images `[B, height, width, channels]`."""
        return batch.inputs

    def load_data(self) -> Pictures:
        """Returns the images and their best constant (read once per process)."""
        return load_pictures(self.data, "mse")[0]

    def batch_shapes(self) -> Reconstructions:
        """Returns the shapes of a training batch (see `Task.batch_shapes`)."""
        pixels = shaped(self.batch_size, *self.input_shape)
        return Reconstructions(pixels, pixels)

    def examples(
        self, dataset: Pictures, rows: jax.Array | slice, split: Split
    ) -> Reconstructions:
        """Returns the images of some rows and their targets."""
        inputs = images.gather(dataset.images, rows, split).images
        best = dataset.best.reshape(1, *inputs.shape[1:])
        return Reconstructions(inputs, inputs - jnp.broadcast_to(best, inputs.shape))

    def loss(self, params: Params, key: jax.Array, batch: Reconstructions) -> Loss:
        """Returns the sum of the three means `[]`, its parts, and the perplexity."""
        del key
        made = self.model.apply(params, batch.inputs, self.num_outputs)
        error = jnp.mean((made.outputs - batch.targets) ** 2)
        latents, entries = map(jax.lax.stop_gradient, (made.latents, made.entries))
        moves_entries = jnp.mean((made.entries - latents) ** 2)
        moves_latents = jnp.mean((made.latents - entries) ** 2)
        parts = {
            "reconstruction_loss": error,
            "codebook_loss": moves_entries,
            "perplexity": perplexity(made.indices, self.model.num_codes),
        }
        return error + moves_entries + self.commitment * moves_latents, parts

    def encode(self, params: Params, pixels: jax.Array) -> jax.Array:
        """Returns latents of normalized images, before quantization."""
        return self.model.encode(params, pixels)

    def decode(self, params: Params, dataset: Pictures, latents: jax.Array) -> Any:
        """Returns raw pixels `[B, height, width, channels]` in 0 … 255."""
        outputs = self.model.decode(params, latents, self.num_outputs)
        best = dataset.best.reshape(1, *outputs.shape[1:])
        normal = outputs + jnp.broadcast_to(best, outputs.shape)
        return jnp.clip(images.unnormalize(dataset.images, normal), 0.0, 255.0)
