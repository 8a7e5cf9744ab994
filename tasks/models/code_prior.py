"""Stage C: a network that finds the noise in a semantic code, told the class.

The code keeps its resolution from the first layer to the last. Noise level and class
are one vector, by which every block is conditioned; one class more than there are
stands for none, so that the same network also knows codes of no class in particular.

The noise is ε̂ = (x − a)/(|1 − b| + 10⁻⁵) with a and b from the last layer, which is
zero at the start: ε̂ is x/(1 + 10⁻⁵) then, right where there is nothing but noise.

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
"""Deviation of the class table at the start."""
FLOOR = 1e-5
"""Added to |1 − b|."""


class CodeInputs(NamedTuple):
    """What a `CodePrior` sees of `B` examples."""

    noisy: jax.Array  # [B, *code]
    times: jax.Array  # [B] noise levels
    labels: jax.Array  # [B] int32; num_classes is none


@final
@configuration
class CodePrior(ConvNeXtModel):
    """The prior of stage C; the number of classes is that of the labels."""

    num_classes: int = 12
    """Classes, without the one that stands for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        base.check_positive(self, "num_classes")

    def example(self, input_shape: tuple[int, ...], num_outputs: int) -> CodeInputs:
        """Inputs of zeros for codes of that shape (see `Model.example`)."""
        del num_outputs
        return CodeInputs(
            jnp.zeros((1, *input_shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
        )

    def module(self, num_outputs: int) -> nn.Module:
        """Maps `CodeInputs` to the noise in them, `[B, h, w, num_outputs]`."""
        return _StageC(self, num_outputs)

    def denoise(
        self, params: Any, noisy: jax.Array, times: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """The noise in codes `[B, *code]`, given times `[B]` and labels `[B]`."""
        return self.apply(params, CodeInputs(noisy, times, labels), noisy.shape[-1])


class _StageC(nn.Module):
    model: CodePrior
    num_outputs: int

    @nn.compact
    def __call__(self, inputs: CodeInputs) -> jax.Array:
        model, width = self.model, self.model.width
        x = Dense(width, "code", "channels", name="stem")(inputs.noisy)
        table = Embedding(model.num_classes + 1, width, std=CLASS_STD, name="classes")
        condition = TimeEmbedding(width, name="time")(inputs.times)
        condition = condition + lookup(table(), inputs.labels)
        condition = base.activation(model.activation)(condition)
        x = record(self, "stream", Blocks(model, name="blocks")(x, condition))
        x = Norm("channels", name="norm")(x)
        both = readout(
            2 * self.num_outputs,
            width,
            model.base_width,
            model.rules,
            fan_out="code",
            fan_in="channels",
        )(x)
        a, b = jnp.split(both, 2, axis=-1)
        return (inputs.noisy - a) / (jnp.abs(1.0 - b) + FLOOR)
