"""Stage A: a convolutional autoencoder whose latents are entries of a codebook.

Four pixels along each axis become one latent vector of four numbers: pairs of pixels
are folded into channels, then a convolution has stride 2. The decoder sees the nearest
entry of the codebook in place of each latent. The choice has no gradient, so the latent
receives that of the entry (*straight-through*).

Latent channels and entries are as many at every width: the encoder's last layer is a
readout, zero at the start, and the codebook, `vocab -> code`, has no scaling axis.

References: van den Oord et al., VQ-VAE, arXiv:1711.00937, Section 3; Pernias et al.,
Würstchen, arXiv:2306.00637, Stage A.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.spec import named
from tasks.models import base
from tasks.models.base import record
from tasks.models.convnext import Blocks, ConvNeXtModel
from tasks.models.layers import (
    Conv,
    Dense,
    Norm,
    check_images,
    depth_to_space,
    readout,
    space_to_depth,
)

COMPRESSION = 4
"""Pixels per latent along each axis."""
FOLD = 2
"""Pixels that the encoder folds into channels, along each axis."""
CODEBOOK_STD = 0.25
"""Standard deviation of entries at the start.

Latents start at 0. If entries are too far apart, a latent never reaches another one and
nothing is learned; if all are near 0, few of them follow.
"""


class Quantized(NamedTuple):
    """Outputs of a `VQAutoEncoder` for `B` images; h and w are those of latents."""

    outputs: jax.Array  # [B, height, width, channels] relative to the best constant
    latents: jax.Array  # [B, h, w, latent_channels] from the encoder
    entries: jax.Array  # [B, h, w, latent_channels] nearest in the codebook
    indices: jax.Array  # [B, h, w] int32, indices of the entries


@final
@configuration
class VQAutoEncoder(ConvNeXtModel):
    """Encoder and decoder around a codebook, without moving averages."""

    width: int = 32
    """Channels of every convolution."""
    depth: int = 2
    """Residual blocks of the encoder, and of the decoder."""
    latent_channels: int = 4
    """Numbers in a latent vector, the same at every width."""
    num_codes: int = 256
    """Number of entries of the codebook."""
    base_width: int = 32
    """Width of the base model, where μP multipliers are 1."""
    base_depth: int = 2
    """Number of blocks at which CompleteP's multipliers are 1."""

    def forward(
        self, module: nn.Module, images: jax.Array, num_outputs: int
    ) -> Quantized:
        """Maps images `[B, height, width, num_outputs]` to `Quantized`."""
        latents = _Encoder(self, name="encoder")(images)
        init = named(nn.initializers.normal(CODEBOOK_STD), "vocab -> code")
        shape = (self.num_codes, self.latent_channels)
        codebook: Any = module.param("codebook", init, shape)
        entries, indices = quantize(latents, codebook)
        decoder = _Decoder(self, num_outputs, name="decoder")
        outputs = decoder(straight_through(latents, entries))
        return Quantized(outputs, latents, entries, indices)

    def encode(self, params: Any, images: jax.Array) -> jax.Array:
        """Computes unquantized latents `[B, height/4, width/4, latent_channels]`."""
        return _Encoder(self).apply({"params": params["encoder"]}, images)  # pyright: ignore

    def decode(self, params: Any, latents: jax.Array, num_outputs: int) -> jax.Array:
        """Decodes the nearest entries to images relative to the best constant."""
        entries, _ = quantize(latents, params["codebook"])
        decoder = _Decoder(self, num_outputs)
        return decoder.apply({"params": params["decoder"]}, entries)  # pyright: ignore


def quantize(latents: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the nearest entry of a codebook `[K, C]` to each latent `[..., C]`.

    Returns:
        Entries `[..., C]` and their indices `[...]` int32, the first of equals.
    """
    latents = jax.lax.stop_gradient(latents)
    # |z − e|² without |z|², which is the same for all entries.
    lengths = jnp.sum(jax.lax.stop_gradient(codebook) ** 2, axis=-1)
    products = latents @ jax.lax.stop_gradient(codebook).T
    distances = jnp.broadcast_to(lengths, products.shape) - 2.0 * products
    indices = jnp.argmin(distances, axis=-1).astype(jnp.int32)
    return codebook[indices], indices


def straight_through(latents: jax.Array, entries: jax.Array) -> jax.Array:
    """Returns the entries, with the gradient of the latents."""
    return latents + jax.lax.stop_gradient(entries - latents)


def perplexity(indices: jax.Array, num_codes: int) -> jax.Array:
    """Computes the effective number `[]` of entries in use: e to their entropy."""
    counts = jnp.zeros(num_codes).at[indices.reshape(-1)].add(1.0)
    share = counts / indices.size
    return jnp.exp(jnp.sum(jax.scipy.special.entr(share)))


class _Encoder(nn.Module):
    model: VQAutoEncoder

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        model = self.model
        check_images(images)
        if images.shape[1] % COMPRESSION or images.shape[2] % COMPRESSION:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels must have "
                f"a height and a width that {COMPRESSION} divides"
            )
        active = base.activation(model.activation)
        patches = space_to_depth(images, FOLD)
        fold = Dense(model.width, "patch patch image_channels", "channels", name="fold")
        x = Conv(model.width, stride=2, name="down")(active(fold(patches)))
        x = record(self, "encoder_stream", Blocks(model, name="blocks")(x))
        x = Norm("channels", name="norm")(x)
        return readout(model, model.latent_channels, "channels", "code", "latents")(x)


class _Decoder(nn.Module):
    model: VQAutoEncoder
    num_outputs: int

    @nn.compact
    def __call__(self, entries: jax.Array) -> jax.Array:
        model = self.model
        x = Dense(model.width, "code", "channels", name="embed")(entries)
        x = record(self, "decoder_stream", Blocks(model, name="blocks")(x))
        x = Norm("channels", name="norm")(x)
        patch = (COMPRESSION, COMPRESSION, self.num_outputs)
        pixels = readout(model, math.prod(patch), "channels", "pixels")(x)
        return depth_to_space(pixels.reshape(*pixels.shape[:3], *patch))
