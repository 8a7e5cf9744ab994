"""Stage A: a convolutional autoencoder whose latents are entries of a codebook.

Four pixels in each direction become one latent vector of four numbers: pairs of pixels
are folded into channels, a convolution of stride 2 does the rest. From each latent and
its neighbours the decoder makes the four by four pixels that it stands for. It sees the
nearest entry of the codebook in place of the latent. Choosing has no gradient, so the
latent is given that of the entry, as if the difference between the two were a constant
(*straight-through*).

The number of latent channels and of entries is the same at every width: the last layer
of the encoder is a readout, zero at the start and scaled like one, and the codebook,
`vocab -> code`, is a table without a scaling axis.

References: van den Oord et al., VQ-VAE, arXiv:1711.00937, Section 3; Pernias et al.,
Würstchen, arXiv:2306.00637, Stage A.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.spec import named
from tasks.models import base
from tasks.models.base import record
from tasks.models.convnext import (
    Blocks,
    ConvNeXtModel,
    depth_to_space,
    space_to_depth,
)
from tasks.models.convolutional import check_images
from tasks.models.layers import Conv, Dense, Norm, readout

COMPRESSION = 4
"""Pixels of a latent, in each direction."""
FOLD = 2
"""Pixels that the encoder folds into channels, in each direction."""
CODEBOOK_STD = 0.25
"""Deviation of entries at the start.

Latents start at 0. If entries lay farther apart, a latent would never reach another
entry, and nothing would be learned; if they all lay near 0, few would follow.
"""


class Quantized(NamedTuple):
    """What a `VQAutoEncoder` makes of `B` images; h and w are those of the latents."""

    outputs: jax.Array  # [B, height, width, channels] relative to the best constant
    latents: jax.Array  # [B, h, w, latent_channels] of the encoder
    entries: jax.Array  # [B, h, w, latent_channels] the nearest of the codebook
    indices: jax.Array  # [B, h, w] int32, which they are


@final
@configuration
class VQAutoEncoder(ConvNeXtModel):
    """Encoder and decoder around a codebook, without moving averages."""

    width: int = 32
    """Channels of every convolution."""
    depth: int = 2
    """Residual blocks of the encoder, and as many of the decoder."""
    latent_channels: int = 4
    """Numbers in a latent vector, the same at every width."""
    num_codes: int = 256
    """Entries of the codebook."""
    base_width: int = 32
    """Width of the base model, where μP multipliers are 1."""
    base_depth: int = 2
    """Number of blocks at which CompleteP's multipliers are 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        base.check_positive(self, "latent_channels", "num_codes")

    def module(self, num_outputs: int) -> nn.Module:
        """Maps images `[B, height, width, num_outputs]` to `Quantized`."""
        return _VQModule(self, num_outputs)

    def encode(self, params: Any, images: jax.Array) -> jax.Array:
        """Latents before quantization `[B, height/4, width/4, latent_channels]`."""
        return _Encoder(self).apply({"params": params["encoder"]}, images)  # pyright: ignore

    def decode(self, params: Any, latents: jax.Array, num_outputs: int) -> jax.Array:
        """Images of the nearest entries, relative to the best constant."""
        entries, _ = quantize(latents, params["codebook"])
        decoder = _Decoder(self, num_outputs)
        return decoder.apply({"params": params["decoder"]}, entries)  # pyright: ignore


def quantize(latents: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest entry of each latent in Euclidean distance, the first of equals.

    Args:
        latents: `[..., C]`.
        codebook: `[K, C]`.

    Returns:
        Entries `[..., C]` and which they are, `[...]` int32.
    """
    latents = jax.lax.stop_gradient(latents)
    # |z − e|² without |z|², which is the same for all entries.
    lengths = jnp.sum(jax.lax.stop_gradient(codebook) ** 2, axis=-1)
    products = latents @ jax.lax.stop_gradient(codebook).T
    distances = jnp.broadcast_to(lengths, products.shape) - 2.0 * products
    indices = jnp.argmin(distances, axis=-1).astype(jnp.int32)
    return codebook[indices], indices


def straight_through(latents: jax.Array, entries: jax.Array) -> jax.Array:
    """The entries, with the gradient of the latents."""
    return latents + jax.lax.stop_gradient(entries - latents)


def perplexity(indices: jax.Array, num_codes: int) -> jax.Array:
    """e to the entropy of how often entries are used, `[]`: how many are in use."""
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
        return readout(
            model.latent_channels,
            model.width,
            model.base_width,
            model.rules,
            name="latents",
            fan_out="code",
            fan_in="channels",
        )(x)


class _Decoder(nn.Module):
    model: VQAutoEncoder
    num_outputs: int

    @nn.compact
    def __call__(self, entries: jax.Array) -> jax.Array:
        model, width = self.model, self.model.width
        x = Dense(width, "code", "channels", name="embed")(entries)
        x = record(self, "decoder_stream", Blocks(model, name="blocks")(x))
        x = Norm("channels", name="norm")(x)
        pixels = readout(
            COMPRESSION * COMPRESSION * self.num_outputs,
            width,
            model.base_width,
            model.rules,
            fan_out="pixels",
            fan_in="channels",
        )(x)
        patches = (*pixels.shape[:3], COMPRESSION, COMPRESSION, self.num_outputs)
        return depth_to_space(pixels.reshape(patches))


class _VQModule(nn.Module):
    model: VQAutoEncoder
    num_outputs: int

    @nn.compact
    def __call__(self, images: jax.Array) -> Quantized:
        model = self.model
        latents = _Encoder(model, name="encoder")(images)
        codebook_init = named(nn.initializers.normal(CODEBOOK_STD), "vocab -> code")
        codebook: Any = self.param(
            "codebook", codebook_init, (model.num_codes, model.latent_channels)
        )
        entries, indices = quantize(latents, codebook)
        decoded = _Decoder(model, self.num_outputs, name="decoder")(
            straight_through(latents, entries)
        )
        return Quantized(decoded, latents, entries, indices)
