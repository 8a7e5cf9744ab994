"""From a class to a picture: stage C, then B, then A.

C makes a code of noise and a class, B makes latents of noise and the code, A's decoder
makes a picture of the latents. Pure functions of the parameters of the three stages.
"""

from __future__ import annotations

import math
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
    """Trained parameters, and the datasets that say how each stage's data is scaled."""

    params_a: Params
    params_b: Params
    params_c: Params
    pictures: Pictures
    latents: LatentDataset
    codes: ImageDataset


@configuration
class Sampling:
    """How pictures are drawn."""

    code_steps: int = 30
    """Guesses of stage C."""
    latent_steps: int = 20
    """Guesses of stage B."""
    code_guidance: float = 2.0
    """How much farther than the class alone says stage C goes; 1 is not farther."""
    latent_guidance: float = 2.0
    """The same of stage B and the code."""
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
        """Normalized codes `[B, *code]` of classes `[B]`."""
        start, rest = jax.random.split(key)
        none = jnp.full_like(labels, task.model.num_classes)

        def predict(noisy: jax.Array, times: jax.Array) -> jax.Array:
            # Both at once, as one batch of twice the size.
            noisy, times, classes = (
                jnp.concatenate(pair)
                for pair in ((noisy, noisy), (times, times), (none, labels))
            )
            guess = task.model.denoise(params, noisy, times, classes)
            without, given = jnp.split(guess, 2)
            return diffusion.guide(without, given, self.code_guidance)

        noise = jax.random.normal(start, (len(labels), *task.input_shape))
        return diffusion.sample(predict, noise, rest, self.code_steps, self.sampler)

    def latents(
        self, task: SemanticPrior, params: Params, codes: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Normalized latents `[B, h, w, C]` of codes as the compressor makes them."""
        start, rest = jax.random.split(key)
        stage_b = task.stage_b
        example = stage_b.model.example(stage_b.input_shape, stage_b.num_outputs)

        def predict(noisy: jax.Array, times: jax.Array) -> jax.Array:
            if self.latent_guidance == 1.0:
                return stage_b.model.denoise(params, noisy, times, codes)
            noisy, times, conditions = (
                jnp.concatenate(pair)
                for pair in (
                    (noisy, noisy),
                    (times, times),
                    (jnp.zeros_like(codes), codes),
                )
            )
            guess = stage_b.model.denoise(params, noisy, times, conditions)
            without, given = jnp.split(guess, 2)
            return diffusion.guide(without, given, self.latent_guidance)

        noise = jax.random.normal(start, (len(codes), *example.noisy.shape[1:]))
        return diffusion.sample(predict, noise, rest, self.latent_steps, self.sampler)

    def generate(
        self, task: SemanticPrior, stages: Stages, labels: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Raw pixels `[B, height, width, channels]` in 0 … 255 of classes `[B]`."""
        for_codes, for_latents = jax.random.split(key)
        codes = self.codes(task, stages.params_c, labels, for_codes)
        return self.render(task, stages, unnormalize(stages.codes, codes), for_latents)

    def render(
        self, task: SemanticPrior, stages: Stages, codes: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Raw pixels of codes as the compressor makes them: stages B and A alone."""
        latents = self.latents(task, stages.params_b, codes, key)
        return decode(task, stages, unnormalize(stages.latents.latents, latents))


def decode(task: SemanticPrior, stages: Stages, latents: jax.Array) -> Any:
    """Raw pixels of latents as the encoder makes them: the decoder of stage A alone."""
    stage_a = task.stage_b.stage_a
    return stage_a.decode(stages.params_a, stages.pictures, latents)
