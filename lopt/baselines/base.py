"""Base class of the hand-designed optimizers."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from lopt.base import Specs, Theta
from lopt.placement import under_any_mesh
from lopt.schedules import AnySchedule, learning_rate_schedule
from parametrization.rules import STANDARD, Rules


@configuration
class RateTuned(abc.ABC):
    """A family of optimizers indexed by the learning rate alone."""

    learning_rate: float
    """Initial learning rate, the whole of θ."""
    schedule: AnySchedule = "constant"
    """constant, cosine to zero at the end of the run, or phases of `lopt.schedules`."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, or μP's column for such steps
    (ADAM_LIKE or COMPLETEP; for SGD their SGD_LIKE forms)."""

    def init(self, key: jax.Array) -> Theta:
        """Returns θ, the learning rate."""
        del key
        return {"learning_rate": jnp.float32(self.learning_rate)}

    @under_any_mesh
    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        rate = learning_rate_schedule(theta["learning_rate"], self.schedule, num_steps)
        return self.with_rate(rate, specs)

    @abc.abstractmethod
    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer under a learning-rate schedule.

        Args:
            rate: updates done before this one `[]` -> learning rate `[]`.
            specs: tree of `ParamSpec`, parallel to the parameters.
        """


def check_normalized(rules: Rules, name: str) -> None:
    """Raises ValueError for a column of steps proportional to the gradient."""
    if rules.sgd_like:
        raise ValueError(
            f"rules = {rules.name} scales steps that are proportional to the "
            f"gradient; {name} are not: use ADAM_LIKE or COMPLETEP"
        )


def check_proportional(rules: Rules, name: str) -> None:
    """Raises ValueError for a column of steps of Θ(1) per element."""
    if not rules.sgd_like and rules is not STANDARD:
        raise ValueError(
            f"rules = {rules.name} scales steps of Θ(1) per element; those of {name} "
            "are proportional to the gradient: use SGD_LIKE or COMPLETEP_SGD_LIKE"
        )
