"""How long episodes are, and how they are cut into windows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class EpisodeLengths:
    """Log-uniform episode lengths, rounded up to multiples of the window.

    Episodes therefore end only where a window does, so a reset costs one
    initialization per window and no gradient term is ever split. With
    `minimum == maximum` the length is constant.
    """

    minimum: int = 100
    """Shortest episode, in inner steps."""
    maximum: int = 1000
    """Longest episode, in inner steps."""
    staggered: bool = True
    """Whether the first episode of each pair is cut to a uniform random number of
    windows, so that the pairs' resets do not coincide."""

    def __post_init__(self) -> None:
        for name in ("minimum", "maximum"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= 10**9:
                raise ValueError(
                    f"lengths.{name} = {value} must be a whole number in [1, 10⁹]"
                )
        if self.maximum < self.minimum:
            raise ValueError(
                f"lengths.maximum = {self.maximum} must be at least "
                f"lengths.minimum = {self.minimum}"
            )

    def sample(
        self, key: jax.Array, window: int, outer_step: int | jax.Array = 0
    ) -> jax.Array:
        """The length `[]` int32 of an episode, a multiple of `window`.

        Args:
            key: consumed.
            window: inner steps T of a window.
            outer_step: `[]` int32, when the episode begins.
        """
        del outer_step
        low, high = jnp.log(float(self.minimum)), jnp.log(float(self.maximum))
        length = jnp.exp(jax.random.uniform(key, (), minval=low, maxval=high))
        if self.minimum == self.maximum:
            length = jnp.asarray(float(self.minimum))
        # The tolerance keeps an exact multiple from being rounded up by log and exp.
        windows = jnp.ceil(length / window - 1e-4).astype(jnp.int32)
        return jnp.maximum(windows, 1) * window

    def stagger(self, key: jax.Array, length: jax.Array, window: int) -> jax.Array:
        """Cuts a first episode to a uniform random number of windows."""
        if not self.staggered:
            return length
        return window * jax.random.randint(key, (), 1, length // window + 1)
