"""bfloat16 in per-parameter networks, and in stored accumulators.

Networks round to nearest. Accumulators may not: a running average with decay .999
changes by a thousandth of itself per step, bfloat16 resolves a 256th, so it would stand
still. Rounded up with a probability equal to the part that is cut off, the stored value
has the right expectation.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from lopt.base import LearnedOptimizer, NumSteps, Specs, Theta, Transform
from lopt.per_parameter.forms import FixedPrecision, in_precision
from lopt.per_parameter.precision import Precision
from lopt.placement import under_any_mesh
from lopt.tensors import need
from lopt.wrappers.base import Wrapper


@configuration
class Bfloat16Features(FixedPrecision, Wrapper):
    """Lets an optimizer's per-parameter networks multiply in bfloat16.

    The same as `lopt.per_parameter.forms.in_precision(inner, "bfloat16")`. Sums,
    accumulators, state and θ stay in float32.
    """

    inner: LearnedOptimizer
    """The wrapped optimizer."""
    wrapped_precision: ClassVar[Precision] = "bfloat16"

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer, or refuses one without such a network."""
        inner = in_precision(self.inner, self.wrapped_precision)
        return inner.as_optax(theta, specs, num_steps)


class RoundedState(NamedTuple):
    """State of `StochasticBfloat16`."""

    step: jax.Array  # [] int32, updates done
    inner: Any  # of the wrapped optimizer, accumulators in bfloat16


@configuration
class StochasticBfloat16(Wrapper):
    """Keeps an optimizer's accumulators in bfloat16, rounded stochastically.

    Every floating-point leaf of the state with at least one axis is stored in bfloat16
    and handed to the wrapped optimizer in its own dtype. The random bits are a function
    of `seed`, the number of updates and the leaf's place in the state, so runs can be
    repeated and compared. `update` needs `params`, from which the dtypes are inferred.
    """

    inner: LearnedOptimizer
    """The wrapped optimizer."""
    seed: int = 0
    """Seed of the random bits."""

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
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
            like = jax.eval_shape(inner.init, need(params, "StochasticBfloat16"))
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
        x: `[*S]`; float64 is first rounded to float32.
        key: gives 16 random bits per element.

    Returns:
        bfloat16 `[*S]`; NaN and infinities as they are.
    """
    x = x.astype(jnp.float32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    # bfloat16 is the upper half of a float32. Noise added to the lower half carries
    # with the probability that this half stands for; the rest is cut off.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    upper = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), upper, x).astype(jnp.bfloat16)


def _is_wide(x: Any) -> bool:
    floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return bool(floating) and jnp.ndim(x) > 0 and jnp.result_type(x) != jnp.bfloat16
