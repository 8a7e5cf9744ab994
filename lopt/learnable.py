"""SGD, momentum and Adam whose hyperparameters are θ: the controls of meta-training.

A handful of scalars is all that is learned, so what meta-training makes of them shows
what a learned *rule* adds. Learning rates and floors are learned as logarithms, a decay
as the logarithm of its complement, log(1 − decay): a step of the same size in θ then
means the same relative change everywhere.

References:
    `LearnableSGD`, `LearnableSGDM` and `LearnableAdam` of google/learned_optimization.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopt.base import Specs, Theta, is_masked
from lopt.baselines import scale_by_specs, unscale_gradients
from parametrization.rules import STANDARD, Rules


@dataclasses.dataclass(frozen=True)
class LearnableSGD:
    """Gradient descent with a learned learning rate; with `rules=SGD_LIKE`, μSGD."""

    initial_learning_rate: float = 0.01
    """Learning rate of `init`'s θ."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, SGD_LIKE or
    COMPLETEP_SGD_LIKE."""

    def __post_init__(self) -> None:
        _check_positive("initial_learning_rate", self.initial_learning_rate)
        _check_sgd_like(self.rules)

    def init(self, key: jax.Array) -> Theta:
        """θ: `{"log_learning_rate": []}`."""
        del key
        return {"log_learning_rate": _log(self.initial_learning_rate)}

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that θ describes (see `LearnedOptimizer.as_optax`)."""
        del num_steps
        return _widened(
            scale_by_specs(specs, self.rules), _descend(theta["log_learning_rate"])
        )


@dataclasses.dataclass(frozen=True)
class LearnableSGDM:
    """Heavy-ball momentum with a learned learning rate and decay.

    The momentum is a sum, not an average: `m ← momentum·m + gradient`.
    """

    initial_learning_rate: float = 0.01
    """Learning rate of `init`'s θ."""
    initial_momentum: float = 0.9
    """Momentum of `init`'s θ."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, SGD_LIKE or
    COMPLETEP_SGD_LIKE."""

    def __post_init__(self) -> None:
        _check_positive("initial_learning_rate", self.initial_learning_rate)
        _check_decay("initial_momentum", self.initial_momentum)
        _check_sgd_like(self.rules)

    def init(self, key: jax.Array) -> Theta:
        """θ: `{"log_learning_rate": [], "log_momentum_complement": []}`."""
        del key
        return {
            "log_learning_rate": _log(self.initial_learning_rate),
            "log_momentum_complement": _log(1.0 - self.initial_momentum),
        }

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that θ describes (see `LearnedOptimizer.as_optax`)."""
        del num_steps
        return _widened(
            optax.trace(decay(theta["log_momentum_complement"])),
            scale_by_specs(specs, self.rules),
            _descend(theta["log_learning_rate"]),
        )


@dataclasses.dataclass(frozen=True)
class LearnableAdam:
    """Adam with four learned scalars; with `rules=ADAM_LIKE`, μAdam.

    As in `lopt.baselines.Adam`, μP also brings the gradients to the base model's size,
    so that ε means the same at every width.
    """

    initial_learning_rate: float = 0.001
    """Learning rate of `init`'s θ."""
    initial_b1: float = 0.9
    """Decay of the momentum in `init`'s θ."""
    initial_b2: float = 0.999
    """Decay of the second moment in `init`'s θ."""
    initial_eps: float = 1e-8
    """Floor of the root of the second moment in `init`'s θ."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, ADAM_LIKE or COMPLETEP."""

    def __post_init__(self) -> None:
        _check_positive("initial_learning_rate", self.initial_learning_rate)
        _check_positive("initial_eps", self.initial_eps)
        _check_decay("initial_b1", self.initial_b1)
        _check_decay("initial_b2", self.initial_b2)
        if self.rules.sgd_like:
            raise ValueError(
                f"rules = {self.rules.name} scales steps that are proportional to the "
                "gradient; Adam's are not: use ADAM_LIKE or COMPLETEP"
            )

    def init(self, key: jax.Array) -> Theta:
        """θ: logarithms, `[]` each.

        Returns:
            `{"log_learning_rate", "log_b1_complement", "log_b2_complement",
            "log_eps"}`.
        """
        del key
        return {
            "log_learning_rate": _log(self.initial_learning_rate),
            "log_b1_complement": _log(1.0 - self.initial_b1),
            "log_b2_complement": _log(1.0 - self.initial_b2),
            "log_eps": _log(self.initial_eps),
        }

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that θ describes (see `LearnedOptimizer.as_optax`)."""
        del num_steps
        adam = optax.scale_by_adam(
            b1=decay(theta["log_b1_complement"]),  # pyright: ignore[reportArgumentType]
            b2=decay(theta["log_b2_complement"]),  # pyright: ignore[reportArgumentType]
            eps=jnp.exp(theta["log_eps"]),  # pyright: ignore[reportArgumentType]
        )
        return _widened(
            unscale_gradients(specs, self.rules),
            adam,
            scale_by_specs(specs, self.rules),
            _descend(theta["log_learning_rate"]),
        )


def decay(log_complement: jax.Array) -> jax.Array:
    """The decay whose complement has this logarithm; never below 0."""
    return 1.0 - jnp.minimum(jnp.exp(log_complement), 1.0)


def _descend(log_learning_rate: jax.Array) -> optax.GradientTransformation:
    rate = jnp.exp(log_learning_rate)

    def update(updates: optax.Updates, params: optax.Params | None = None) -> Any:
        del params
        return _map(lambda u: -rate.astype(u.dtype) * u, updates)

    return optax.stateless(update)


def _widened(
    *links: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The chain, run in at least float32 on parameters of any type."""
    chain = optax.with_extra_args_support(optax.chain(*links))

    def init(params: optax.Params) -> Any:
        return chain.init(_map(_wide, params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        steps, state = chain.update(_map(_wide, updates), state, params, **extra_args)
        like = updates if params is None else params
        steps = jax.tree.map(
            lambda step, old: step if is_masked(step) else step.astype(old.dtype),
            steps,
            like,
            is_leaf=is_masked,
        )
        return steps, state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def _map(function: Any, tree: Any) -> Any:
    return jax.tree.map(
        lambda x: x if is_masked(x) else function(x), tree, is_leaf=is_masked
    )


def _wide(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _log(value: float) -> jax.Array:
    return jnp.float32(math.log(value))


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} = {value} must be positive")


def _check_decay(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} = {value} must lie in [0, 1)")


def _check_sgd_like(rules: Rules) -> None:
    if not rules.sgd_like and rules is not STANDARD:
        raise ValueError(
            f"rules = {rules.name} scales steps of Θ(1) per element; those of SGD are "
            "proportional to the gradient: use SGD_LIKE or COMPLETEP_SGD_LIKE"
        )
