"""Wrappers of the gradient: clipping, accumulation over batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import LearnedOptimizer, NumSteps, Specs, Theta, Transform
from lopt.clipping import clip_global_norm
from lopt.placement import under_any_mesh, vary
from lopt.wrappers.base import Wrapper


@configuration
class ClippedGradients(Wrapper):
    """Shrinks the whole gradient to a norm of at most `max_norm`.

    Where the norm is not finite the wrapped optimizer sees a gradient of zeros (see
    `lopt.clipping.clip_global_norm`).
    """

    inner: LearnedOptimizer
    """The wrapped optimizer."""
    max_norm: float = 1.0
    """Largest norm over all tensors."""

    def __post_init__(self) -> None:
        checks.positive(self, "max_norm")

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        inner = self.inner.as_optax(theta, specs, num_steps)
        return optax.chain(clip_global_norm(self.max_norm), inner)


class AccumulationState(NamedTuple):
    """State of `AccumulatedGradients`."""

    steps: optax.MultiStepsState
    loss: jax.Array  # [] float32, mean loss of the batches since the last update


@configuration
class AccumulatedGradients(Wrapper):
    """Updates once every `num_batches` batches, by their mean gradient.

    Between updates the steps are zero (`optax.MultiSteps`). The wrapped optimizer
    counts its own updates, of which a run has `num_steps // num_batches`. The loss
    (`loss` or `value`) is averaged over the same batches as the gradient; other
    arguments are those of the last batch.
    """

    inner: LearnedOptimizer
    """The wrapped optimizer."""
    num_batches: int = 2
    """Batches per update."""

    def __post_init__(self) -> None:
        checks.positive_integer(self, "num_batches")

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        if isinstance(num_steps, int):
            num_updates: int | jax.Array = max(num_steps // self.num_batches, 1)
        else:
            num_updates = jnp.maximum(num_steps // self.num_batches, 1)
        inner = self.inner.as_optax(theta, specs, num_updates)
        steps = optax.MultiSteps(inner, self.num_batches)

        def init(params: optax.Params) -> AccumulationState:
            loss = vary(jnp.zeros([], jnp.float32), params)
            return AccumulationState(steps.init(params), loss)

        def update(
            updates: optax.Updates,
            state: AccumulationState,
            params: optax.Params | None = None,
            *,
            loss: jax.typing.ArrayLike | None = None,
            value: jax.typing.ArrayLike | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, AccumulationState]:
            given = {"loss": loss, "value": value}
            given = {name: x for name, x in given.items() if x is not None}
            mean = state.loss
            if given:
                name, latest = next(iter(given.items()))
                done = state.steps.mini_step
                mean = jnp.where(done == 0, 0.0, mean)
                mean = (mean + (latest - mean) / (done + 1)).astype(jnp.float32)
                given[name] = mean
            fresh = state.steps.mini_step == 0
            # optax empties its sum by a factor of 0, which keeps NaN and infinity.
            kept = jax.tree.map(
                lambda x: jnp.where(fresh, jnp.zeros_like(x), x), state.steps.acc_grads
            )
            before = state.steps._replace(acc_grads=kept)
            result, new = steps.update(updates, before, params, **given, **extra_args)
            moves = new.mini_step == 0
            result = jax.tree.map(
                lambda x: jnp.where(moves, x, jnp.zeros_like(x)), result
            )
            return result, AccumulationState(new, mean)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore
