"""Stage C: predicts the noise in a semantic code, given its class.

Noise level and class are embedded into one vector that conditions every block. An
additional class stands for none, so that codes are also modelled unconditionally.

The noise is ε̂ = (x − a)/(|1 − b| + 10⁻⁵), with a and b from the last layer. As that
starts at zero, ε̂ starts at x/(1 + 10⁻⁵), which is right where there is only noise.

Reference: Pernias et al., Würstchen, arXiv:2306.00637, Stage C; there text takes the
place of the class, by attention.
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
from tasks.models.layers import Dense, Embedding, Norm, lookup, readout

CLASS_STD = 0.02
"""Standard deviation of the class table at the start."""
FLOOR = 1e-5
"""Added to |1 − b|."""


class CodeInputs(NamedTuple):
    """Inputs of a `CodePrior` for `B` examples."""

    noisy: jax.Array  # [B, *code]
    times: jax.Array  # [B] noise levels
    labels: jax.Array  # [B] int32; num_classes stands for none


@final
@configuration
class CodePrior(ConvNeXtModel):
    """The prior of stage C."""

    num_classes: int = 12
    """Number of classes, without the one that stands for none."""

    def example(self, input_shape: tuple[int, ...], num_outputs: int) -> CodeInputs:
        """Returns inputs of zeros for codes of that shape (see `Model.example`)."""
        del num_outputs
        return CodeInputs(
            jnp.zeros((1, *input_shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
        )

    def forward(
        self, module: nn.Module, inputs: CodeInputs, num_outputs: int
    ) -> jax.Array:
        """Maps `CodeInputs` to the noise in them, `[B, h, w, num_outputs]`."""
        width = self.width
        x = Dense(width, "code", "channels", name="stem")(inputs.noisy)
        table = Embedding(self.num_classes + 1, width, std=CLASS_STD, name="classes")
        condition = TimeEmbedding(width, name="time")(inputs.times)
        condition = condition + lookup(table(), inputs.labels)
        condition = base.activation(self.activation)(condition)
        x = record(module, "stream", Blocks(self, name="blocks")(x, condition))
        x = Norm("channels", name="norm")(x)
        both = readout(self, 2 * num_outputs, "channels", "code")(x)
        a, b = jnp.split(both, 2, axis=-1)
        return (inputs.noisy - a) / (jnp.abs(1.0 - b) + FLOOR)

    def denoise(
        self, params: Any, noisy: jax.Array, times: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Predicts the noise in codes `[B, *code]`, given times and labels `[B]`."""
        return self.apply(params, CodeInputs(noisy, times, labels), noisy.shape[-1])
