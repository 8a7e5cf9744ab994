"""The interface between a meta-gradient estimator and what it perturbs."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from lopt.base import Theta


class Episode(Protocol):
    """State of an unroll in progress: any pytree that knows its step and length."""

    @property
    def step(self) -> jax.Array:
        """Steps taken, `[]` int32."""
        ...

    @property
    def length(self) -> jax.Array:
        """Steps of the whole episode, `[]` int32."""
        ...


class Problem(Protocol):
    """What meta-training optimizes: an unroll with meta-parameters θ."""

    def sample(self, key: jax.Array) -> Any:
        """What is particular about one episode: a pytree, the same for both members."""
        ...

    def start(
        self, theta: Theta, variant: Any, key: jax.Array, length: jax.Array
    ) -> Any:
        """A new `Episode` of `length` steps; independent of θ's values."""
        ...

    def unroll(
        self,
        theta: Theta,
        episode: Any,
        variant: Any,
        dataset: Any,
        key: jax.Array,
        num_steps: int,
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Advances an episode.

        Args:
            theta: meta-parameters.
            episode: where it stands.
            variant: what was sampled for it.
            dataset: data; `Windowed` where only the batches of this window are there.
            key: of the batches.
            num_steps: how far (`T`).

        Returns:
            The episode `num_steps` later, its normalized and finite losses `[T]`, and
            whether it has diverged, `[]` bool.
        """
        ...


class Windowed(NamedTuple):
    """Data of which each pair is given only the batches of its next window."""

    resident: Any  # what all pairs share
    windows: Any  # [N] in front; without it where one pair is concerned


class Estimate(NamedTuple):
    """A meta-gradient and what was seen on the way."""

    grad: Theta
    loss: jax.Array  # [] mean normalized loss over all members and steps
    metrics: dict[str, jax.Array]
    terms: Theta  # [N, ...] each pair's contribution; grad is their mean
