"""The interface between a meta-gradient estimator and what it perturbs."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

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
        remat: bool = False,
        *,
        outer_step: int | jax.Array = 0,
    ) -> Unrolled:
        """Advances an episode.

        Args:
            theta: meta-parameters.
            episode: where it stands.
            variant: what was sampled for it.
            dataset: data; `Windowed` where only the batches of this window are there.
            key: of the batches.
            num_steps: how far (`T`).
            remat: whether a derivative computes each step anew, which saves memory.
                Only backpropagation asks for it.
            outer_step: `[]` int32, outer steps done before this window.
        """
        ...


class Unrolled(NamedTuple):
    """What a window of an episode came to; all that is in it is finite."""

    episode: Any  # where it stands after the window
    contributions: jax.Array  # [T]; their mean over an episode is its objective
    losses: jax.Array  # [T] normalized losses, for the record
    diverged: jax.Array  # [] bool


class Windowed(NamedTuple):
    """Data of which each pair is given only the batches of its next window."""

    resident: Any  # what all pairs share
    windows: Any  # [N] in front; without it where one pair is concerned


class Estimate(NamedTuple):
    """A meta-gradient and what was seen on the way."""

    grad: Theta
    loss: jax.Array  # [] mean normalized loss over all members and steps
    metrics: dict[str, jax.Array]
    terms: Theta | None  # [N, ...] each particle's part, grad is their mean; None
    # where they never lie together


class Parts(NamedTuple):
    """What particles came to in a window; those of all devices make an estimate."""

    terms: Theta | None  # [N, ...] each particle's term
    total: Theta | None  # [1, ...] their sum, where terms never lie together
    metrics: dict[str, jax.Array]  # [N]

    def estimate(self) -> Estimate:
        """The mean over all particles, in their order."""
        metrics = jax.tree.map(jnp.mean, self.metrics)
        if self.terms is not None:
            grad = jax.tree.map(lambda x: jnp.mean(x, axis=0), self.terms)
        else:
            num = jax.tree.leaves(self.metrics)[0].shape[0]
            grad = jax.tree.map(lambda x: x[0] / num, self.total)
        return Estimate(grad, metrics["meta_loss"], metrics, self.terms)


@runtime_checkable
class Estimator(Protocol):
    """Estimates meta-gradients from windows of unrolls; frozen, static under `jit`."""

    @property
    def truncation(self) -> int:
        """Inner steps T of a window."""
        ...

    @property
    def num_members(self) -> int:
        """Unrolls that one estimate advances by a window each."""
        ...

    @property
    def num_chunks(self) -> int:
        """Chunks of particles, which devices may share (see `metatrain.devices`)."""
        ...

    def init(self, problem: Problem, theta: Theta) -> Any:
        """Particles that have not begun: a pytree with their number `[N]` in front."""
        ...

    def advance(
        self,
        problem: Problem,
        theta: Theta,
        state: Any,
        dataset: Any,
        key: jax.Array,
        outer_step: int | jax.Array = 0,
        first: int | jax.Array = 0,
    ) -> tuple[Parts, Any]:
        """Advances particles by one window: all of them, or those of one device.

        Args:
            problem: what is unrolled.
            theta: meta-parameters.
            state: the particles, their number in front.
            dataset: passed through to the problem; of `Windowed` data, to each particle
                its own windows.
            key: consumed.
            outer_step: `[]` int32, outer steps done before.
            first: `[]` int32, the place of the first of them among all.
        """
        ...

    def estimate(
        self,
        problem: Problem,
        theta: Theta,
        state: Any,
        dataset: Any,
        key: jax.Array,
        outer_step: int | jax.Array = 0,
    ) -> tuple[Estimate, Any]:
        """Advances all particles and estimates the meta-gradient (see `advance`)."""
        ...

    def data_keys(self, key: jax.Array) -> jax.Array:
        """The keys `[N]` of the unrolls of `estimate` with this key, by particle."""
        ...
