"""Our learned optimizers behind the interface of google/learned_optimization.

There a `LearnedOptimizer` has `init(key)` and `opt_fn(theta)`, which returns an
`Optimizer`: it owns the parameters and the model's state, and its `update` returns the
next state. The library itself is not imported.

    from lopt.interchange.peer import PeerLearnedOptimizer

    step = VectorizedLOptTruncatedStep(family, PeerLearnedOptimizer(SmallFC()), ...)

Parameters there have no roles: each is taken to be at its base shape, where μP is the
standard parametrization, unless `specs` says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.base import LearnedOptimizer, Specs, Theta
from parametrization.inference import guess_specs


class PeerState(NamedTuple):
    """State of a `PeerOptimizer`."""

    params: Any
    state: Any  # state of the model, or None
    rule: Any  # state of the optax transformation
    num_steps: jax.Array  # [] int32, of the whole run
    iteration: jax.Array  # [] int32, updates done
    valid_loss: jax.Array  # [] float32, seen since the last update; NaN if none


def at_base(params: Any) -> Specs:
    """Returns specs of parameters at their base shapes."""
    return guess_specs(params, params)[0]


@dataclasses.dataclass(frozen=True)
class PeerLearnedOptimizer:
    """A learned optimizer with that library's methods; hashable."""

    optimizer: LearnedOptimizer
    """The wrapped optimizer."""
    num_steps: int | None = None
    """Default length of a run."""
    specs: Callable[[Any], Specs] = at_base
    """Makes specs of parameters from their tree of shapes."""

    @property
    def name(self) -> str:
        """The class's name and the fields that differ from their defaults."""
        kind = type(self.optimizer)
        words = [kind.__name__]
        if dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                value = getattr(self.optimizer, field.name)
                if value != field.default:
                    words.append(f"{field.name}{getattr(value, 'name', value)}")
        return "_".join(words).replace(" ", "")

    def init(self, key: jax.Array) -> Theta:
        """Returns the initial θ, from a typed or a raw key."""
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        return self.optimizer.init(key)

    def opt_fn(self, theta: Theta, is_training: bool = False) -> PeerOptimizer:
        """Returns the optimizer that θ describes, in training or not."""
        del is_training
        return PeerOptimizer(self, theta)


class PeerOptimizer:
    """An optimizer with that library's methods; θ may be traced."""

    def __init__(self, parent: PeerLearnedOptimizer, theta: Theta) -> None:
        self.parent = parent
        self.theta = theta

    @property
    def name(self) -> str:
        """Name of the learned optimizer."""
        return self.parent.name

    def init(
        self,
        params: Any,
        model_state: Any = None,
        num_steps: int | jax.Array | None = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> PeerState:
        """Returns the initial state.

        Args:
            params: parameters.
            model_state: state of the model.
            num_steps: `[]` length of the run; may be traced.
            key: not used.
            kwargs: not used.

        Raises:
            ValueError: if the length of the run is not given.
        """
        del key, kwargs
        if num_steps is None:
            num_steps = self.parent.num_steps
        if num_steps is None:
            raise ValueError(
                "num_steps = None: pass init(params, num_steps=...), or give "
                "PeerLearnedOptimizer a num_steps"
            )
        num_steps = jnp.asarray(num_steps, jnp.int32)
        rule = self._rule(params, num_steps).init(params)
        never = jnp.float32(jnp.nan)
        return PeerState(params, model_state, rule, num_steps, jnp.int32(0), never)

    def update(
        self,
        opt_state: PeerState,
        grad: Any,
        *,
        loss: jax.Array | None = None,
        model_state: Any = None,
        is_valid: bool | jax.Array = False,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> PeerState:
        """Returns the state after a step.

        Args:
            opt_state: state before the step.
            grad: gradient at its parameters.
            loss: `[]` loss at its parameters; some rules need it.
            model_state: state of the model after the step.
            is_valid: `[]` whether the loss is on validation data. If so, there is no
                step; the next one passes the loss to the rule as `valid_loss`.
            key: not used.
            kwargs: passed to the rule.
        """
        del key

        def step() -> PeerState:
            rule = self._rule(opt_state.params, opt_state.num_steps)
            extra = kwargs if loss is None else {"loss": loss, **kwargs}
            extra = {"valid_loss": opt_state.valid_loss, **extra}
            steps, state = rule.update(grad, opt_state.rule, opt_state.params, **extra)
            return PeerState(
                params=optax.apply_updates(opt_state.params, steps),
                state=model_state,
                rule=state,
                num_steps=opt_state.num_steps,
                iteration=opt_state.iteration + 1,
                valid_loss=jnp.full_like(opt_state.valid_loss, jnp.nan),
            )

        def remember() -> PeerState:
            if loss is None:
                raise ValueError("is_valid needs the loss: update(..., loss=loss)")
            seen = jnp.asarray(loss, opt_state.valid_loss.dtype)
            return opt_state._replace(state=model_state, valid_loss=seen)

        if is_valid is False:
            return step()
        return jax.lax.cond(is_valid, remember, step)

    def get_params(self, state: PeerState) -> Any:
        """Returns the parameters."""
        return state.params

    def get_state(self, state: PeerState) -> Any:
        """Returns the model's state."""
        return state.state

    def get_params_state(self, state: PeerState) -> tuple[Any, Any]:
        """Returns both."""
        return state.params, state.state

    def set_params(self, state: PeerState, params: Any) -> PeerState:
        """Replaces the parameters."""
        return state._replace(params=params)

    def _rule(
        self, params: Any, num_steps: jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        shapes = jax.eval_shape(lambda: params)
        rule = self.parent.optimizer.as_optax(
            self.theta, self.parent.specs(shapes), num_steps
        )
        return optax.with_extra_args_support(rule)
