"""Hand-designed optimizers behind the interface of learned ones.

A baseline's θ is its learning rate. So it runs in the same inner loop as a learned
optimizer, and a grid of learning rates is one vmapped program. The updates are optax's;
μP enters as one more link of the chain.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from lopt.base import Specs, Theta, is_masked
from parametrization.rules import STANDARD, Rules

Schedule = Literal["constant", "cosine"]


def scale_by_specs(specs: Specs, rules: Rules) -> optax.GradientTransformation:
    """Multiplies each parameter's update by its step scale in a parametrization."""

    def update(updates: optax.Updates, params: optax.Params | None = None) -> Any:
        del params
        return jax.tree.map(
            lambda u, spec: u if is_masked(u) else u * rules.step_scale(spec),
            updates,
            specs,
            is_leaf=is_masked,
        )

    return optax.stateless(update)


def unscale_gradients(specs: Specs, rules: Rules) -> optax.GradientTransformation:
    """Divides each gradient by how much the parametrization makes it shrink.

    What follows sees gradients of the base model's size, so that an absolute floor
    (Adam's epsilon, those of learned features) means the same at every width. To a rule
    that does not care about the gradient's scale it makes no difference.
    """

    def update(updates: optax.Updates, params: optax.Params | None = None) -> Any:
        del params
        return jax.tree.map(
            lambda u, spec: u if is_masked(u) else u / rules.gradient_scale(spec),
            updates,
            specs,
            is_leaf=is_masked,
        )

    return optax.stateless(update)


def learning_rate_schedule(
    learning_rate: jax.Array, schedule: Schedule, num_steps: int | jax.Array
) -> optax.Schedule:
    """Constant, or a cosine to zero at `num_steps`; all arguments may be traced."""
    if schedule == "constant":
        return lambda count: learning_rate

    def cosine(count: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.minimum(count / jnp.maximum(num_steps, 1), 1.0)
        return learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    return cosine


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, arXiv:1412.6980).

    With weight decay it is AdamW (arXiv:1711.05101); with `rules=ADAM_LIKE`, μAdam.
    """

    learning_rate: float = 1e-3
    """Learning rate of `init`'s θ."""
    schedule: Schedule = "constant"
    """constant, or cosine to zero at the end of the run."""
    b1: float = 0.9
    """Decay of the momentum."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment; in μP it shrinks as gradients do."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate but not by μP's step
    scale, so that its strength does not depend on the width."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, ADAM_LIKE or COMPLETEP."""

    def __post_init__(self) -> None:
        _check_positive("learning_rate", self.learning_rate)
        if self.rules.sgd_like:
            raise ValueError(
                f"rules = {self.rules.name} scales steps that are proportional to the "
                "gradient; Adam's are not: use ADAM_LIKE or COMPLETEP"
            )
        _check_schedule(self.schedule)
        _check_positive("eps", self.eps)
        for name in ("b1", "b2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1)")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay = {self.weight_decay} must not be negative")

    def init(self, key: jax.Array) -> Theta:
        """θ: the learning rate."""
        del key
        return {"learning_rate": jnp.float32(self.learning_rate)}

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer (see `LearnedOptimizer.as_optax`)."""
        schedule = learning_rate_schedule(
            theta["learning_rate"], self.schedule, num_steps
        )
        decay = (
            [optax.add_decayed_weights(self.weight_decay)] if self.weight_decay else []
        )
        return optax.chain(
            unscale_gradients(specs, self.rules),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            scale_by_specs(specs, self.rules),
            *decay,
            optax.scale_by_learning_rate(schedule),
        )


@dataclasses.dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum; with `rules=SGD_LIKE`, μSGD."""

    learning_rate: float = 1e-1
    """Learning rate of `init`'s θ."""
    schedule: Schedule = "constant"
    """constant, or cosine to zero at the end of the run."""
    momentum: float = 0.0
    """Heavy-ball momentum; 0 is plain SGD."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, SGD_LIKE or
    COMPLETEP_SGD_LIKE."""

    def __post_init__(self) -> None:
        _check_positive("learning_rate", self.learning_rate)
        if not self.rules.sgd_like and self.rules is not STANDARD:
            raise ValueError(
                f"rules = {self.rules.name} scales steps of Θ(1) per element; those of "
                "SGD are proportional to the gradient: use SGD_LIKE or "
                "COMPLETEP_SGD_LIKE"
            )
        _check_schedule(self.schedule)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum = {self.momentum} must lie in [0, 1)")

    def init(self, key: jax.Array) -> Theta:
        """θ: the learning rate."""
        del key
        return {"learning_rate": jnp.float32(self.learning_rate)}

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer (see `LearnedOptimizer.as_optax`)."""
        schedule = learning_rate_schedule(
            theta["learning_rate"], self.schedule, num_steps
        )
        return optax.chain(
            optax.trace(self.momentum) if self.momentum else optax.identity(),
            scale_by_specs(specs, self.rules),
            optax.scale_by_learning_rate(schedule),
        )


Baseline = Adam | SGD


def _check_schedule(schedule: str) -> None:
    known = get_args(Schedule)
    if schedule not in known:
        raise ValueError(f"schedule = {schedule!r} must be one of {known}")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} = {value} must be positive")
