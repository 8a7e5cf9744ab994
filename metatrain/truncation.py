"""Lengths of episodes, in whole truncation windows.

Long episodes are what training is about, short ones are cheap and do not diverge; so
lengths are drawn from a range, and the range may grow during meta-training. It is a
function of the traced outer step, so nothing is recompiled.
"""

from __future__ import annotations

import itertools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from configuration.ranges import check_range

Distribution = Literal["log_uniform", "uniform"]
Growth = Literal["constant", "linear", "log_linear"]
Stage: TypeAlias = tuple[int, int, int]
"""(until, minimum, maximum): bounds before the outer step `until`."""


@configuration
class EpisodeLengths:
    """Random episode lengths, rounded up to multiples of the window.

    Episodes therefore end only where a window does, so a reset costs one
    initialization per window and no gradient term is split.
    """

    minimum: int = 100
    """Shortest episode, in inner steps."""
    maximum: int = 1000
    """Longest episode, in inner steps."""
    staggered: bool = True
    """Whether the first episode of each particle is cut to a uniform random number of
    windows, so that resets do not coincide."""
    distribution: Distribution = "log_uniform"
    """log_uniform: as many episodes of 100 to 200 steps as of 200 to 400; uniform: all
    numbers of steps are equally likely."""
    stages: tuple[Stage, ...] = ()
    """(until, minimum, maximum) for episodes that begin before the outer step `until`,
    by ascending `until`; after the last stage, the bounds above."""
    growth: Growth = "constant"
    """Change of the bounds during a stage. constant: they jump at its end; linear,
    log_linear: they move to those of the next stage, on a linear or log scale."""

    def __post_init__(self) -> None:
        _check_bounds("lengths.", self.minimum, self.maximum)
        if self.growth != "constant" and not self.stages:
            raise ValueError(
                f"lengths.growth = {self.growth!r} needs a stage to grow from: give "
                "lengths.stages = ((until, minimum, maximum),)"
            )
        _check_stages(self.stages)

    @property
    def longest(self) -> int:
        """Longest episode of the whole meta-training, in inner steps."""
        return max(self.maximum, *(high for _, _, high in self.stages), 0)

    def bounds(self, outer_step: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the shortest and longest episode `[]` that may begin at a step.

        int32 for constant bounds, float32 where they grow.
        """
        ends = [until for until, _, _ in self.stages]
        minima = [low for _, low, _ in self.stages] + [self.minimum]
        maxima = [high for _, _, high in self.stages] + [self.maximum]
        if self.growth == "constant":
            stage = jnp.sum(outer_step >= jnp.asarray(ends, jnp.int32))
            low, high = (jnp.asarray(x, jnp.int32)[stage] for x in (minima, maxima))
        else:
            low, high = (
                _along(outer_step, [0, *ends], x, self.growth) for x in (minima, maxima)
            )
        return low, high

    def sample(
        self, key: jax.Array, window: int, outer_step: int | jax.Array = 0
    ) -> jax.Array:
        """Samples the length `[]` int32 of an episode that begins at an outer step.

        A multiple of `window`, its inner steps T.
        """
        minimum, maximum = self.bounds(outer_step)
        if self.distribution == "uniform":
            low, high = (jnp.round(x).astype(jnp.int32) for x in (minimum, maximum))
            length = jax.random.randint(key, (), low, high + 1)
            return (length + window - 1) // window * window
        low, high = (jnp.log(x.astype(jnp.float32)) for x in (minimum, maximum))
        length = jnp.exp(jax.random.uniform(key, (), minval=low, maxval=high))
        length = jnp.where(minimum == maximum, minimum, length)
        # The tolerance keeps an exact multiple from being rounded up by log and exp.
        windows = jnp.ceil(length / window - 1e-4).astype(jnp.int32)
        return jnp.maximum(windows, 1) * window

    def stagger(self, key: jax.Array, length: jax.Array, window: int) -> jax.Array:
        """Cuts a first episode to a uniform random number of windows."""
        if not self.staggered:
            return length
        return window * jax.random.randint(key, (), 1, length // window + 1)


def _along(
    outer_step: int | jax.Array, steps: list[int], values: list[int], growth: Growth
) -> jax.Array:
    """Interpolates values `[]` float32 between outer steps; constant after the last."""
    x = jnp.asarray(outer_step, jnp.float32)
    at, y = jnp.asarray(steps, jnp.float32), jnp.asarray(values, jnp.float32)
    if growth == "linear":
        return jnp.interp(x, at, y)
    # exp and log need not invert each other exactly.
    return jnp.clip(jnp.exp(jnp.interp(x, at, jnp.log(y))), min(values), max(values))


def _check_bounds(where: str, minimum: int, maximum: int) -> None:
    check_range(f"{where}minimum", minimum, "[1, 1e9]")
    check_range(f"{where}maximum", maximum, "[1, 1e9]")
    if maximum < minimum:
        raise ValueError(
            f"{where}maximum = {maximum} must be at least {where}minimum = {minimum}"
        )


def _check_stages(stages: tuple[Stage, ...]) -> None:
    for index, (until, minimum, maximum) in enumerate(stages):
        check_range(f"lengths.stages[{index}] until", until, "[1, 1e9]")
        _check_bounds(f"lengths.stages[{index}] ", minimum, maximum)
    for (before, *_), (after, *_) in itertools.pairwise(stages):
        if after <= before:
            raise ValueError(
                f"lengths.stages: until = {after} must be greater than the {before} of "
                "the stage before"
            )
