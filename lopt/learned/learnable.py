"""SGD, momentum and Adam whose hyperparameters are θ: controls for learned rules.

Learning rates and floors are learned as logarithms, decays as log(1 − decay): equal
steps in θ are equal relative changes.

References:
    `LearnableSGD`, `LearnableSGDM` and `LearnableAdam` of google/learned_optimization.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import NumSteps, Specs, Theta, Transform
from lopt.baselines import base
from lopt.baselines.links import in_float32, scale_by_specs, unscale_gradients
from lopt.clipping import root
from lopt.placement import under_any_mesh
from parametrization.rules import STANDARD, Rules


@configuration
class LearnableSGD:
    """Gradient descent with a learned learning rate; with `rules=SGD_LIKE`, μSGD."""

    initial_learning_rate: float = 0.01
    """Learning rate of `init`'s θ."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, SGD_LIKE or
    COMPLETEP_SGD_LIKE."""

    def __post_init__(self) -> None:
        checks.positive(self, "initial_learning_rate")
        base.check_proportional(self.rules, "SGD")

    def init(self, key: jax.Array) -> Theta:
        """Returns `{"log_learning_rate": []}`."""
        del key
        return {"log_learning_rate": _log(self.initial_learning_rate)}

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        del num_steps
        return _chain(scale_by_specs(specs, self.rules), _descend(theta))


@configuration
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
        checks.positive(self, "initial_learning_rate")
        checks.decay(self, "initial_momentum")
        base.check_proportional(self.rules, "SGD")

    def init(self, key: jax.Array) -> Theta:
        """Returns `{"log_learning_rate": [], "log_momentum_complement": []}`."""
        del key
        return {
            "log_learning_rate": _log(self.initial_learning_rate),
            "log_momentum_complement": _log(1.0 - self.initial_momentum),
        }

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        del num_steps
        return _chain(
            optax.trace(decay(theta["log_momentum_complement"])),
            scale_by_specs(specs, self.rules),
            _descend(theta),
        )

    def learned_decays(self, theta: Theta) -> dict[str, jax.Array]:
        """Returns the decay, `[]`, by name."""
        return {"momentum": decay(theta["log_momentum_complement"])}


@configuration
class LearnableAdam:
    """Adam with four learned scalars; with `rules=ADAM_LIKE`, μAdam.

    In μP gradients are brought to the base model's size, so ε means the same at every
    width.
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
        checks.positive(self, "initial_learning_rate", "initial_eps")
        checks.decay(self, "initial_b1", "initial_b2")
        base.check_normalized(self.rules, "Adam's")

    def init(self, key: jax.Array) -> Theta:
        """Returns logarithms, `[]` each: of rate, 1 − β₁, 1 − β₂ and ε."""
        del key
        return {
            "log_learning_rate": _log(self.initial_learning_rate),
            "log_b1_complement": _log(1.0 - self.initial_b1),
            "log_b2_complement": _log(1.0 - self.initial_b2),
            "log_eps": _log(self.initial_eps),
        }

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        del num_steps
        return _chain(
            unscale_gradients(specs, self.rules),
            _scale_by_adam(theta),
            scale_by_specs(specs, self.rules),
            _descend(theta),
        )

    def learned_decays(self, theta: Theta) -> dict[str, jax.Array]:
        """Returns the decays, `[]`, by name."""
        return {name: decay(theta[f"log_{name}_complement"]) for name in ("b1", "b2")}


def decay(log_complement: jax.Array) -> jax.Array:
    """Returns the decay whose complement has this logarithm; never below 0."""
    return 1.0 - jnp.minimum(jnp.exp(log_complement), 1.0)


def _scale_by_adam(theta: Theta) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, from complements: 1 − βᵗ keeps its digits in float32."""
    c1, c2 = (
        jnp.minimum(jnp.exp(theta[f"log_{name}_complement"]), 1.0)
        for name in ("b1", "b2")
    )

    def update(
        updates: optax.Updates,
        state: optax.ScaleByAdamState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: (1 - c1) * m + c1 * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: (1 - c2) * v + c2 * g * g, state.nu, updates)
        w1, w2 = _total_weight(c1, count), _total_weight(c2, count)
        eps = jnp.exp(theta["log_eps"])
        steps = jax.tree.map(lambda m, v: m / w1 / (root(v / w2) + eps), mu, nu)
        return steps, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)  # pyright: ignore


def _total_weight(complement: jax.Array, count: Any) -> jax.Array:
    """Returns 1 − decay^count (see `accumulators.total_weight`)."""
    # Below 1, so that the derivative is finite where nothing is averaged.
    complement = jnp.minimum(complement, 1.0 - 2.0**-24)
    return -jnp.expm1(count * jnp.log1p(-complement))


def _descend(theta: Theta) -> optax.GradientTransformation:
    return optax.scale_by_learning_rate(jnp.exp(theta["log_learning_rate"]))


def _chain(
    *links: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    return in_float32(optax.chain(*links))


def _log(value: float) -> jax.Array:
    return jnp.float32(math.log(value))
