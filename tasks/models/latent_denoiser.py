"""Stage B: predicts the noise in latents, given a semantic code of the image.

The *compressor* maps an image to a semantic code, a small grid of a few numbers; the
*denoiser* sees noisy latents of stage A, the noise level and the code. They are trained
as one, so the code learns what the noise hides. In generation it comes from stage C.

The noise is ε̂ = (x − a)/b, with a and b from the last layer and b = σ(·) squeezed into
[10⁻³, 1 − 10⁻³]. As that layer starts at zero, ε̂ starts at 2x.

The compressor's last layer is a readout, zero at the start. Noise is added to codes in
training, so a code must not outgrow it: it is divided by √(1 + its mean square), which
keeps its root mean square below 1. (The paper uses batch normalization.)

Reference: Pernias et al., Würstchen, arXiv:2306.00637, Stage B.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from tasks.models import base
from tasks.models.base import record
from tasks.models.convnext import Blocks, ConvNeXtModel, TimeEmbedding
from tasks.models.layers import (
    Conv,
    Dense,
    Norm,
    check_images,
    depth_to_space,
    readout,
    space_to_depth,
)
from tasks.models.vq_autoencoder import COMPRESSION

FLOOR = 1e-3
"""Smallest b, and distance of its largest value from 1."""


class LatentInputs(NamedTuple):
    """Inputs of a `LatentDenoiser` for `B` examples; h and w are those of latents."""

    noisy: jax.Array  # [B, h, w, latent_channels]
    times: jax.Array  # [B] noise levels
    images: jax.Array  # [B, height, width, channels] normalized, without noise
    code_scale: jax.Array  # [B] factor on the code; 0 drops it
    code_noise: jax.Array  # [B, *code] added to the code


@final
@configuration
class LatentDenoiser(ConvNeXtModel):
    """Compressor and denoiser of stage B."""

    depth: int = 3
    """Residual blocks of the denoiser."""
    base_depth: int = 3
    """Number of blocks at which CompleteP's multipliers are 1."""
    code_channels: int = 8
    """Channels of the code, the same at every width."""
    code_stride: int = 16
    """Pixels per element of the code, along each axis: a power of 2, at least 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_stride < COMPRESSION or self.code_stride.bit_count() != 1:
            raise ValueError(
                f"code_stride = {self.code_stride} must be a power of 2, at least "
                f"{COMPRESSION}"
            )

    def code_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Returns the shape of the code of an image `[height, width, channels]`."""
        height, width = (-(-n // self.code_stride) for n in image_shape[:2])
        return (height, width, self.code_channels)

    def example(self, input_shape: tuple[int, ...], num_outputs: int) -> LatentInputs:
        """Returns inputs of zeros for images of that shape (see `Model.example`)."""
        height, width = (n // COMPRESSION for n in input_shape[:2])
        return LatentInputs(
            noisy=jnp.zeros((1, height, width, num_outputs)),
            times=jnp.zeros(1),
            images=jnp.zeros((1, *input_shape)),
            code_scale=jnp.zeros(1),
            code_noise=jnp.zeros((1, *self.code_shape(input_shape))),
        )

    def forward(
        self, module: nn.Module, inputs: LatentInputs, num_outputs: int
    ) -> jax.Array:
        """Maps `LatentInputs` to the noise in them, `[B, h, w, num_outputs]`."""
        code = _Compressor(self, name="compressor")(inputs.images)
        scale = jnp.broadcast_to(inputs.code_scale[:, None, None, None], code.shape)
        code = scale * code + inputs.code_noise
        denoiser = _Denoiser(self, num_outputs, name="denoiser")
        return denoiser(inputs.noisy, inputs.times, code)

    def compress(self, params: Any, images: jax.Array) -> jax.Array:
        """Computes semantic codes `[B, *code]` of normalized images."""
        return _Compressor(self).apply({"params": params["compressor"]}, images)  # pyright: ignore

    def denoise(
        self, params: Any, noisy: jax.Array, times: jax.Array, code: jax.Array
    ) -> jax.Array:
        """Predicts the noise in latents `[B, h, w, C]` from times `[B]` and a code."""
        denoiser = _Denoiser(self, noisy.shape[-1])
        return denoiser.apply({"params": params["denoiser"]}, noisy, times, code)  # pyright: ignore


class _Compressor(nn.Module):
    model: LatentDenoiser

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        model = self.model
        check_images(images)
        active = base.activation(model.activation)
        fold = Dense(model.width, "patch patch image_channels", "channels", name="fold")
        x = fold(space_to_depth(images, COMPRESSION))
        for i in range((model.code_stride // COMPRESSION).bit_length() - 1):
            x = active(Norm("channels", name=f"norm_{i}")(x))
            x = Conv(model.width, stride=2, name=f"down_{i}")(x)
        x = active(Norm("channels", name="norm")(x))
        code = readout(model, model.code_channels, "channels", "code", "code")(x)
        square = jnp.mean(code**2, axis=(1, 2, 3), keepdims=True)
        return record(self, "bounded", code * jax.lax.rsqrt(1.0 + square))


class _Denoiser(nn.Module):
    model: LatentDenoiser
    num_outputs: int

    @nn.compact
    def __call__(
        self, noisy: jax.Array, times: jax.Array, code: jax.Array
    ) -> jax.Array:
        model, width = self.model, self.model.width
        _, rows, columns, _ = noisy.shape
        x = Dense(width, "code", "channels", name="stem")(noisy)
        # Every element of the code has another effect on each latent below it.
        patch = (model.code_stride // COMPRESSION,) * 2
        spread = Dense((*patch, width), "code", "patch patch channels", name="spread")
        x = x + depth_to_space(spread(code))[:, :rows, :columns]
        active = base.activation(model.activation)
        condition = active(TimeEmbedding(width, name="time")(times))
        x = record(self, "stream", Blocks(model, name="blocks")(x, condition))
        x = Norm("channels", name="norm")(x)
        both = readout(model, 2 * self.num_outputs, "channels", "code")(x)
        a, b = jnp.split(both, 2, axis=-1)
        return (noisy - a) / (FLOOR + (1.0 - 2.0 * FLOOR) * nn.sigmoid(b))
