"""The vision transformer (Dosovitskiy et al., arXiv:2010.11929).

Pooling by the mean is that of Beyer et al., arXiv:2205.01580.
"""

from __future__ import annotations

from typing import Any, Literal, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.rules import initializer
from tasks.models.base import record
from tasks.models.blocks import BlockModel, Residual
from tasks.models.layers import (
    Dense,
    Embedding,
    Norm,
    check_images,
    readout,
    space_to_depth,
)

Pooling = Literal["class_token", "mean"]


@final
@configuration
class ViT(BlockModel):
    """A classifier of images of any resolution that the patch divides."""

    patch: int = 4
    """Height and width of a patch, in pixels."""
    pooling: Pooling = "class_token"
    """Input of the readout: an extra token, or the mean over all patches."""

    def forward(
        self, module: nn.Module, images: jax.Array, num_outputs: int
    ) -> jax.Array:
        """Maps images `[B, height, width, channels]` to logits `[B, num_outputs]`."""
        check_images(images)
        height, width = images.shape[1:3]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"patch = {self.patch} must divide the resolution {height} x {width} "
                "of the images"
            )
        patches = space_to_depth(images, self.patch)
        patches = patches.reshape(len(images), -1, *patches.shape[3:])
        x = Dense(self.width, "patch patch image_channels", name="patches")(patches)
        if self.pooling == "class_token":
            init = initializer("-> width")
            token: Any = module.param("class_token", init, (self.width,))
            first = jnp.broadcast_to(token, (x.shape[0], 1, self.width))
            x = jnp.concatenate([first, x], axis=1)
        places = Embedding(x.shape[1], self.width, "positions", name="positions")
        x = x + jnp.broadcast_to(places(), x.shape)
        record(module, "embedded", x)
        x = Norm(name="norm")(Residual(self, name="residual")(x))
        x = x[:, 0] if self.pooling == "class_token" else jnp.mean(x, axis=1)
        record(module, "pooled", x)
        return readout(self, num_outputs)(x)
