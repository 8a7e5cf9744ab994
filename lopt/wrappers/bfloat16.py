"""Two ways to bfloat16: networks that multiply in it, accumulators stored in it.

Networks forget what they compute, so they may round to nearest
(`lopt.per_parameter.precision`). Accumulators may not: a running average with decay
.999 changes by a thousandth of itself per step, and bfloat16 knows steps of a 256th, so
rounded to nearest it stands still. Rounded up with a probability equal to the part that
is cut off, it is right on average: the expectation of what is stored is what was
computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from lopt.base import LearnedOptimizer, Specs, Theta
from lopt.per_parameter.forms import in_precision
from lopt.wrappers.base import Wrapper


@configuration
class Bfloat16Features(Wrapper):
    """Lets an optimizer's networks of features multiply in bfloat16.

    Sums, accumulators, state and θ stay in float32 (see
    `lopt.per_parameter.precision`), so weights may be trained in one precision and used
    in the other.
    """

    inner: LearnedOptimizer
    """The wrapped optimizer."""

    def check(self, specs: Specs) -> None:
        """Refuses an optimizer without such a network."""
        del specs
        in_precision(self.inner, "bfloat16")

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer (see `LearnedOptimizer.as_optax`)."""
        inner = in_precision(self.inner, "bfloat16")
        return inner.as_optax(theta, specs, num_steps)


class RoundedState(NamedTuple):
    """State of `StochasticBfloat16`."""

    step: jax.Array  # [] int32, updates done
    inner: Any  # of the wrapped optimizer, accumulators in bfloat16


@configuration
class StochasticBfloat16(Wrapper):
    """Keeps an optimizer's accumulators in bfloat16, rounded stochastically.

    Every floating-point leaf of the state with at least one axis is stored in bfloat16
    and handed to the wrapped optimizer in its own dtype; counters and scalars stay as
    they are. The random bits are a function of `seed`, the number of updates and the
    leaf's place in the state, so a run can be repeated and runs that are compared round
    with the same bits. Values that bfloat16 holds do not move, nor do NaN and
    infinities. `update` needs `params`, from which the dtypes are inferred.
    """

    inner: LearnedOptimizer
    """The wrapped optimizer."""
    seed: int = 0
    """Of the random bits."""

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer (see `LearnedOptimizer.as_optax`)."""
        inner = self.inner.as_optax(theta, specs, num_steps)

        def init(params: optax.Params) -> RoundedState:
            step = jnp.zeros([], jnp.int32)
            return RoundedState(step, self._store(inner.init(params), step))

        def update(
            updates: optax.Updates,
            state: RoundedState,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, RoundedState]:
            if params is None:
                raise ValueError(
                    "StochasticBfloat16 needs params: update(grads, state, params)"
                )
            like = jax.eval_shape(inner.init, params)
            wide = jax.tree.map(lambda x, y: x.astype(y.dtype), state.inner, like)
            steps, new = inner.update(updates, wide, params, **extra_args)
            step = state.step + 1
            return steps, RoundedState(step, self._store(new, step))

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def _store(self, state: Any, step: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        leaves, structure = jax.tree.flatten(state)
        return structure.unflatten(
            round_stochastically(x, jax.random.fold_in(key, i)) if _is_wide(x) else x
            for i, x in enumerate(leaves)
        )


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds to one of the two nearest bfloat16 values, without bias.

    Args:
        x: floating-point array of any shape; float64 is first rounded to float32.
        key: of 16 random bits per element.

    Returns:
        bfloat16 `[*S]`; NaN and infinities as they are.
    """
    x = x.astype(jnp.float32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    # bfloat16 is the upper half of a float32: adding noise to the lower half carries
    # with the probability that the half stands for, and the rest is cut off.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    upper = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), upper, x).astype(jnp.bfloat16)


def _is_wide(x: Any) -> bool:
    floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return bool(floating) and jnp.ndim(x) > 0 and jnp.result_type(x) != jnp.bfloat16
