"""Diffusion: noise levels, losses and samplers, as pure functions.

The noise level is a time t in [0, 1]: x_t = √ᾱ x_0 + √(1 − ᾱ) ε, where ᾱ(t) falls along
a squared cosine from .9999 to .0001. A network guesses ε. Its squared error is weighted
by 1/(1 + SNR) = 1 − ᾱ, which gives less weight to levels with hardly any noise.

Samplers go from t = 1 to 0. Each step computes the x_0 that the guess implies; DDIM
keeps the guessed noise, DDPM draws a part of it anew.

References: Nichol and Dhariwal, arXiv:2102.09672, Equation 17 (cosine); Choi et al.,
arXiv:2204.00227, Equation 8 with k = γ = 1 (weight); Ho et al., arXiv:2006.11239,
Equations 6 and 7 (DDPM); Song et al., arXiv:2010.02502, Equation 12 with σ = 0 (DDIM);
Ho and Salimans, arXiv:2207.12598 (guidance); Pernias et al., Würstchen,
arXiv:2306.00637, for the constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

OFFSET = 0.008
"""Offset s of the cosine, which keeps the first steps from being too small."""
SMALLEST, LARGEST = 1e-4, 0.9999
"""Bounds of ᾱ."""
STRETCH, EARLIEST = 1.08, 1e-3
"""Training times are uniform in [.001, 1.081), cut at 1: some are pure noise."""

Sampler = Literal["ddim", "ddpm"]
Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""Maps noisy values `[B, ...]` and times `[B]` to a guess of the noise `[B, ...]`."""


def alpha_bar(times: jax.Array) -> jax.Array:
    """Returns the signal's share of the variance at each time."""
    quarter = 0.5 * jnp.pi
    angles = (times + OFFSET) / (1.0 + OFFSET) * quarter
    start = jnp.cos(OFFSET / (1.0 + OFFSET) * quarter) ** 2
    return jnp.clip(jnp.cos(angles) ** 2 / start, SMALLEST, LARGEST)


def draw_times(key: jax.Array, num: int) -> jax.Array:
    """Draws training times `[num]`: 1.08 (1 − u) + .001, at most 1."""
    u = jax.random.uniform(key, (num,))
    return jnp.clip(STRETCH * (1.0 - u) + EARLIEST, EARLIEST, 1.0)


def diffuse(clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """Returns x_t from x_0 and ε, both `[B, ...]`, at times `[B]`."""
    share = _like(alpha_bar(times), clean)
    return jnp.sqrt(share) * clean + jnp.sqrt(1.0 - share) * noise


def undiffuse(noisy: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """Returns x_0 from x_t and ε: the inverse of `diffuse`."""
    share = _like(alpha_bar(times), noisy)
    return (noisy - jnp.sqrt(1.0 - share) * noise) / jnp.sqrt(share)


def p2_weight(times: jax.Array) -> jax.Array:
    """Returns the weight of the squared error: 1/(1 + SNR), which is 1 − ᾱ."""
    return 1.0 - alpha_bar(times)


def weighted_error(
    guess: jax.Array, noise: jax.Array, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss `[]`, and the mean squared error `[]` without weights.

    Guess and noise are `[B, ...]`, times `[B]`.
    """
    errors = jnp.mean((guess - noise) ** 2, axis=tuple(range(1, noise.ndim)))
    return jnp.mean(p2_weight(times) * errors), jnp.mean(errors)


def guide(without: jax.Array, given: jax.Array, weight: float) -> jax.Array:
    """Extrapolates from the guess without a condition past the one with it.

    Weight 0 is without, 1 is with, more than 1 is farther in the same direction.
    """
    return without + weight * (given - without)


def ddim_step(
    noisy: jax.Array, guess: jax.Array, times: jax.Array, earlier: jax.Array
) -> jax.Array:
    """Returns x at `earlier`, `[B]`, from x at `times`, `[B]`, without new noise."""
    return diffuse(undiffuse(noisy, guess, times), guess, earlier)


def ddpm_step(
    noisy: jax.Array,
    guess: jax.Array,
    times: jax.Array,
    earlier: jax.Array,
    fresh: jax.Array,
) -> jax.Array:
    """Draws x at `earlier` given x at `times` and the x_0 that the guess implies.

    Times are `[B]`; all others `[B, ...]`, `fresh` from N(0, 1).
    """
    now, then = (_like(alpha_bar(t), noisy) for t in (times, earlier))
    kept = now / then
    clean = undiffuse(noisy, guess, times)
    mean = (
        jnp.sqrt(then) * (1.0 - kept) * clean + jnp.sqrt(kept) * (1.0 - then) * noisy
    ) / (1.0 - now)
    return mean + jnp.sqrt((1.0 - then) * (1.0 - kept) / (1.0 - now)) * fresh


def sample(
    predict: Predict,
    start: jax.Array,
    key: jax.Array,
    num_steps: int,
    sampler: Sampler = "ddim",
) -> jax.Array:
    """Goes from noise to data in even steps of time; traceable.

    The last step returns the guessed x_0 itself, so no noise is left.

    Args:
        predict: guesses the noise.
        start: `[B, ...]` drawn from N(0, 1).
        key: key of the noise of "ddpm"; unused by "ddim".
        num_steps: number of guesses.
        sampler: ddim or ddpm.
    """
    grid = jnp.linspace(1.0, 0.0, num_steps + 1)

    def step(noisy: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        key, *ends = step
        times, earlier = (jnp.full(len(noisy), t) for t in ends)
        guess = predict(noisy, times)
        if sampler == "ddim":
            return ddim_step(noisy, guess, times, earlier), None
        fresh = jax.random.normal(key, noisy.shape, noisy.dtype)
        return ddpm_step(noisy, guess, times, earlier, fresh), None

    steps = (jax.random.split(key, num_steps), grid[:-1], grid[1:])
    noisy, _ = jax.lax.scan(step, start, jax.tree.map(lambda x: x[:-1], steps))
    times = jnp.full(len(start), grid[-2])
    return undiffuse(noisy, predict(noisy, times), times)


def _like(values: jax.Array, x: jax.Array) -> jax.Array:
    """Repeats `[B]` to the shape `[B, ...]` of x."""
    return jnp.broadcast_to(values.reshape(-1, *(1,) * (x.ndim - 1)), x.shape)
