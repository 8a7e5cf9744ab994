"""Generation of a picture from a class: stage C, then B, then A.

C turns noise and a class into a code, B turns noise and the code into latents, and A's
decoder turns the latents into a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from tasks.autoencoding import Pictures
from tasks.base import Params
from tasks.data.images import ImageDataset, unnormalize
from tasks.generation import diffusion
from tasks.generation.latent_diffusion import LatentDataset
from tasks.generation.prior import SemanticPrior
from tasks.models.base import check_positive


class Stages(NamedTuple):
    """Trained parameters, and the datasets with each stage's normalization."""

    params_a: Params
    params_b: Params
    params_c: Params
    pictures: Pictures
    latents: LatentDataset
    codes: ImageDataset


@configuration
class Sampling:
    """Options of the samplers."""

    code_steps: int = 30
    """Steps of stage C."""
    latent_steps: int = 20
    """Steps of stage B."""
    code_guidance: float = 2.0
    """Weight of the class in stage C's guidance; 1 is no guidance."""
    latent_guidance: float = 2.0
    """Weight of the code in stage B's guidance."""
    sampler: diffusion.Sampler = "ddpm"
    """ddpm draws noise at every step, ddim only at the start."""

    def __post_init__(self) -> None:
        check_positive(self, "code_steps", "latent_steps")
        for name in ("code_guidance", "latent_guidance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} = {value} must not be negative")

    def codes(
        self, task: SemanticPrior, params: Params, labels: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Returns normalized codes `[B, *code]` of classes `[B]`."""
        start, rest = jax.random.split(key)
        none = jnp.full_like(labels, task.model.num_classes)
        predict = _guided(
            partial(task.model.denoise, params), none, labels, self.code_guidance
        )
        noise = jax.random.normal(start, (len(labels), *task.input_shape))
        return diffusion.sample(predict, noise, rest, self.code_steps, self.sampler)

    def latents(
        self, task: SemanticPrior, params: Params, codes: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Returns normalized latents `[B, h, w, C]` of the compressor's codes."""
        start, rest = jax.random.split(key)
        stage_b = task.stage_b
        example = stage_b.model.example(stage_b.input_shape, stage_b.num_outputs)
        denoise = partial(stage_b.model.denoise, params)
        if self.latent_guidance == 1.0:  # the guess without a code is not needed
            predict: diffusion.Predict = partial(denoise, code=codes)
        else:
            none = jnp.zeros_like(codes)
            predict = _guided(denoise, none, codes, self.latent_guidance)
        noise = jax.random.normal(start, (len(codes), *example.noisy.shape[1:]))
        return diffusion.sample(predict, noise, rest, self.latent_steps, self.sampler)

    def generate(
        self, task: SemanticPrior, stages: Stages, labels: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Returns raw pixels `[B, height, width, channels]` of classes `[B]`."""
        for_codes, for_latents = jax.random.split(key)
        codes = self.codes(task, stages.params_c, labels, for_codes)
        return self.render(task, stages, unnormalize(stages.codes, codes), for_latents)

    def render(
        self, task: SemanticPrior, stages: Stages, codes: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Returns raw pixels of the compressor's codes, by stages B and A alone."""
        latents = self.latents(task, stages.params_b, codes, key)
        return decode(task, stages, unnormalize(stages.latents.latents, latents))


def decode(task: SemanticPrior, stages: Stages, latents: jax.Array) -> Any:
    """Returns raw pixels of the encoder's latents, by stage A's decoder alone."""
    stage_a = task.stage_b.stage_a
    return stage_a.decode(stages.params_a, stages.pictures, latents)


def _guided(
    denoise: Callable[..., jax.Array],
    none: jax.Array,
    conditions: jax.Array,
    weight: float,
) -> diffusion.Predict:
    """Returns a guess under classifier-free guidance.

    Args:
        denoise: maps noisy values, times and conditions to a guess of the noise.
        none: conditions `[B, ...]` that say nothing.
        conditions: `[B, ...]`.
        weight: of the conditions (see `diffusion.guide`).
    """

    def predict(noisy: jax.Array, times: jax.Array) -> jax.Array:
        # Both at once, as one batch of twice the size.
        noisy, times = (jnp.concatenate((x, x)) for x in (noisy, times))
        guess = denoise(noisy, times, jnp.concatenate((none, conditions)))
        without, given = jnp.split(guess, 2)
        return diffusion.guide(without, given, weight)

    return predict
