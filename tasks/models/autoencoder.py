"""Autoencoders with fully connected layers around a bottleneck.

The bottleneck of `AutoEncoder` is a fraction of the width (axis `latent`, a scaling
name). That of `VAE` is a code of fixed size: its heads are readouts, so the posterior
starts exactly at the prior. Images of any shape are flattened.
"""

from __future__ import annotations

from typing import NamedTuple, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.rules import ADAM_LIKE, Rules
from tasks.models import base
from tasks.models.base import Activation, Model, record
from tasks.models.layers import Dense, readout


@final
@configuration
class AutoEncoder(Model):
    """Encoder and decoder around a linear layer of fewer units.

    Hinton and Salakhutdinov, Science 313 (2006), without their pretraining.
    """

    width: int = 32
    """Units of every hidden layer."""
    depth: int = 1
    """Hidden layers of the encoder, and as many of the decoder."""
    bottleneck: int = 4
    """The bottleneck has width // bottleneck units."""
    base_width: int = 32
    """Units of the base model's hidden layers, where μP multipliers are 1."""
    rules: Rules = ADAM_LIKE
    """Parametrization; without residual branches CompleteP is the same as μP."""
    activation: Activation = "relu"
    """Nonlinearity after each hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "base_width"):
            if getattr(self, name) < self.bottleneck:
                raise ValueError(
                    f"{name} = {getattr(self, name)} must be at least bottleneck = "
                    f"{self.bottleneck}, or no unit is left"
                )

    def forward(self, module: nn.Module, x: jax.Array, num_outputs: int) -> jax.Array:
        """Maps `[B, ...]` to a reconstruction `[B, num_outputs]`."""
        x = _hidden(self, x.reshape(x.shape[0], -1), "encoder", "pixels")
        latent = Dense(self.width // self.bottleneck, "width", "latent", name="latent")
        x = _hidden(self, latent(x), "decoder", "latent")
        return readout(self, num_outputs, fan_out="pixels")(x)


class Inference(NamedTuple):
    """Outputs of a `VAE` for `B` inputs and codes of `C` numbers."""

    outputs: jax.Array  # [B, pixels] decoded from one sample of the posterior
    mean: jax.Array  # [B, C] of the Gaussian posterior
    log_variance: jax.Array  # [B, C] of the Gaussian posterior

    def divergence(self) -> jax.Array:
        """KL divergence of the posterior from the prior N(0, 1), `[B]` in nats.

        Kingma and Welling, arXiv:1312.6114, Appendix B.
        """
        # expm1: near the prior the variance and 1 + its logarithm nearly cancel.
        excess = jnp.expm1(self.log_variance) - self.log_variance
        return 0.5 * jnp.sum(self.mean**2 + excess, axis=-1)


@final
@configuration
class VAE(Model):
    """Variational autoencoder with a Gaussian code (arXiv:1312.6114).

    The code is a sample of the posterior, or its mean without a key.
    """

    width: int = 32
    """Units of every hidden layer."""
    depth: int = 1
    """Hidden layers of the encoder, and as many of the decoder."""
    code: int = 8
    """Numbers in a code, the same at every width."""
    base_width: int = 32
    """Units of the base model's hidden layers, where μP multipliers are 1."""
    rules: Rules = ADAM_LIKE
    """Parametrization; without residual branches CompleteP is the same as μP."""
    activation: Activation = "relu"
    """Nonlinearity after each hidden layer."""

    def forward(self, module: nn.Module, x: jax.Array, num_outputs: int) -> Inference:
        """Maps `[B, ...]` to an `Inference` of `num_outputs` pixels."""
        x = _hidden(self, x.reshape(x.shape[0], -1), "encoder", "pixels")
        mean, log_variance = (
            readout(self, self.code, fan_out="code", name=name)(x)
            for name in ("mean", "log_variance")
        )
        code = mean
        if module.has_rng("sample"):
            noise = jax.random.normal(module.make_rng("sample"), mean.shape, mean.dtype)
            code = mean + jnp.exp(0.5 * log_variance) * noise
        x = _hidden(self, record(module, "sample", code), "decoder", "code")
        outputs = readout(self, num_outputs, fan_out="pixels")(x)
        return Inference(outputs, mean, log_variance)


def _hidden(
    model: AutoEncoder | VAE, x: jax.Array, side: str, fan_in: str
) -> jax.Array:
    """Applies the hidden layers of one side: `[B, n]` to `[B, width]`."""
    for i in range(model.depth):
        layer = Dense(model.width, fan_in="width" if i else fan_in, name=f"{side}_{i}")
        x = base.activation(model.activation)(layer(x))
    return x
