"""The interface of a meta-gradient estimator."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lopt.base import Theta
from metatrain.inner_training import InnerTraining


class Estimate(NamedTuple):
    """A meta-gradient and its metrics."""

    grad: Theta
    loss: jax.Array  # [] mean normalized loss over all members and steps
    metrics: dict[str, jax.Array]
    terms: Theta | None  # [N, ...] each particle's term, grad is their mean; None
    # where they are only summed


class Parts(NamedTuple):
    """Contributions of particles to an estimate; all devices' parts make one."""

    terms: Theta | None  # [N, ...] each particle's term
    total: Theta | None  # [1, ...] their sum, where terms are only summed
    metrics: dict[str, jax.Array]  # [N]

    def estimate(self) -> Estimate:
        """Returns the mean over all particles, in their order."""
        metrics = jax.tree.map(jnp.mean, self.metrics)
        if self.terms is not None:
            grad = jax.tree.map(lambda x: jnp.mean(x, axis=0), self.terms)
        else:
            num = jax.tree.leaves(self.metrics)[0].shape[0]
            grad = jax.tree.map(lambda x: x[0] / num, self.total)
        return Estimate(grad, metrics["meta_loss"], metrics, self.terms)


@runtime_checkable
class Estimator(Protocol):
    """Estimates meta-gradients from windows of unrolls; frozen, static under `jit`.

    A particle is what one key stands for: an antithetic pair, or a single unroll.
    """

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

    def init(self, problem: InnerTraining, theta: Theta) -> Any:
        """Returns particles without an episode: a pytree, their number `[N]` first."""
        ...

    def advance(
        self,
        problem: InnerTraining,
        theta: Theta,
        state: Any,
        dataset: Any,
        key: jax.Array,
        *,
        outer_step: int | jax.Array = 0,
        first: int | jax.Array = 0,
    ) -> tuple[Parts, Any]:
        """Advances particles by one window: all of them, or those of one device.

        Args:
            problem: what is unrolled.
            theta: meta-parameters.
            state: the particles, their number in front.
            dataset: data of the problem; `Windowed` data has a plan for each particle.
            key: consumed.
            outer_step: `[]` int32, outer steps done before.
            first: `[]` int32, index of the first of these particles among all.
        """
        ...

    def data_keys(self, key: jax.Array) -> jax.Array:
        """Returns the keys `[N]` of the batches that `advance` draws with this key."""
        ...
