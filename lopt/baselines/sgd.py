"""Gradient descent: plain, with heavy-ball momentum, with Nesterov's."""

from __future__ import annotations

import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs
from lopt.baselines import base
from lopt.baselines.links import in_float32, scale_by_specs
from lopt.schedules import AnySchedule
from parametrization.rules import STANDARD, Rules


@configuration
class SGD(base.RateTuned):
    """Gradient descent with momentum; with `rules=SGD_LIKE`, μSGD."""

    learning_rate: float = 1e-1
    """Learning rate of `init`'s θ."""
    schedule: AnySchedule = "constant"
    """constant, cosine to zero at the end of the run, or phases of `lopt.schedules`."""
    momentum: float = 0.0
    """Heavy-ball momentum; 0 is plain SGD."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, SGD_LIKE or
    COMPLETEP_SGD_LIKE."""
    nesterov: bool = False
    """Whether the momentum looks one step ahead (Sutskever et al., 2013)."""

    def __post_init__(self) -> None:
        base.check_common(self)
        base.check_proportional(self.rules, "SGD")
        checks.decay(self, "momentum")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = True needs a momentum, and momentum = 0.0")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer with any learning rate as a function of the step."""
        momentum = optax.trace(self.momentum, self.nesterov)
        return in_float32(
            optax.chain(
                momentum if self.momentum else optax.identity(),
                scale_by_specs(specs, self.rules),
                optax.scale_by_learning_rate(rate),
            )
        )
