"""Text-to-image stages trained by any optimizer, and pictures drawn from them.

Each stage is trained on the output of the earlier ones, as in `tasks.generation`, but
by the given optimizer rather than by the Adam of `Pretraining`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.training import train_model
from lopt.base import LearnedOptimizer, Theta
from metatrain.inner import InnerLoop
from metatrain.keys import stream
from tasks.base import Params, Task
from tasks.data.images import gather, unnormalize
from tasks.generation.latent_diffusion import encode_latents
from tasks.generation.pipeline import Sampling, Stages, decode
from tasks.generation.prior import SemanticPrior, encode_codes

Report = Callable[[str], None]


class Pictures(NamedTuple):
    """Raw pixels in 0 … 255, uint8; `K` classes in the first axis."""

    samples: np.ndarray  # [K, n, height, width, channels] from the class alone
    originals: np.ndarray  # [K, height, width, channels] of the test split
    rendered: np.ndarray  # originals, from their code by stages B and A
    decoded: np.ndarray  # originals, by stage A alone


def train_stages(
    task: SemanticPrior,
    lopt: LearnedOptimizer,
    thetas: tuple[Theta, Theta, Theta],
    num_steps: tuple[int, int, int],
    seed: int,
    report: Report,
) -> tuple[Stages, dict[str, np.ndarray]]:
    """Trains A, B and C in this order, each on the output of the earlier ones.

    Args:
        task: stage C, which holds the others.
        lopt: the optimizer of all three.
        thetas: its meta-parameters for A, B and C.
        num_steps: training steps of A, B and C.
        seed: seed of initial parameters and batches.
        report: called with a line after each stage.

    Returns:
        The stages, and the losses of each by its letter.
    """
    stage_b, stage_a = task.stage_b, task.stage_b.stage_a
    key = stream(jax.random.key(seed), "generation")
    losses = {}

    def train(letter: str, task: Task, dataset: Any) -> Params:
        index = "ABC".index(letter)
        steps = num_steps[index]
        loop = InnerLoop(task, lopt)
        params, curve = train_model(loop, thetas[index], steps, key, dataset)
        losses[letter] = np.asarray(curve)
        last = losses[letter][-max(1, steps // 20) :].mean()
        report(f"stage {letter}: {steps} steps, loss {last:.4f}")
        return params

    pictures = stage_a.load_data()
    params_a = train("A", stage_a, pictures)
    latents = encode_latents(stage_a, params_a)
    params_b = train("B", stage_b, latents)
    codes = encode_codes(stage_b, params_b)
    params_c = train("C", task, codes)
    stages = Stages(params_a, params_b, params_c, pictures, latents, codes)
    return stages, losses


def draw_pictures(
    task: SemanticPrior,
    stages: Stages,
    sampling: Sampling,
    num_samples: int,
    seed: int,
) -> Pictures:
    """Draws samples of every class, and one test picture of each reproduced."""
    classes = np.arange(task.model.num_classes)
    test = stages.pictures.images.test
    labels = np.asarray(test.labels)
    missing = sorted(set(classes.tolist()) - set(labels.tolist()))
    if missing:
        raise ValueError(f"class {missing[0]} has no picture in the test split")
    rows = jnp.asarray([np.flatnonzero(labels == k)[0] for k in classes])
    key = stream(jax.random.key(seed), "samples")
    wanted = jnp.asarray(np.repeat(classes, num_samples), jnp.int32)
    samples = jax.jit(partial(sampling.generate, task))(stages, wanted, key)
    seen = gather(stages.latents.latents, rows, "test").images
    codes = gather(stages.codes, rows, "test").images
    rendered = jax.jit(partial(sampling.render, task))(
        stages, unnormalize(stages.codes, codes), stream(key, "rendered")
    )
    decoded = jax.jit(partial(decode, task))(
        stages, unnormalize(stages.latents.latents, seen)
    )
    samples = _pixels(samples)
    return Pictures(
        samples.reshape(len(classes), num_samples, *samples.shape[1:]),
        np.asarray(test.images)[np.asarray(rows)],
        _pixels(rendered),
        _pixels(decoded),
    )


def _pixels(raw: jax.Array) -> np.ndarray:
    return np.round(np.asarray(raw)).astype(np.uint8)
