"""Gradient descent: plain, with heavy-ball momentum or with Nesterov's."""

from __future__ import annotations

import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs
from lopt.baselines import base
from lopt.baselines.links import in_float32, scale_by_specs


@configuration
class SGD(base.RateTuned):
    """Gradient descent with momentum; with `rules=SGD_LIKE`, μSGD."""

    learning_rate: float = 1e-1
    """Initial learning rate, the whole of θ."""
    momentum: float = 0.0
    """Heavy-ball momentum; 0 is plain SGD."""
    nesterov: bool = False
    """Whether the momentum looks one step ahead (Sutskever et al., 2013)."""

    def __post_init__(self) -> None:
        base.check_proportional(self.rules, "SGD")
        checks.positive(self, "learning_rate")
        checks.decay(self, "momentum")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = True needs a momentum, and momentum = 0.0")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer under a learning-rate schedule."""
        momentum = optax.trace(self.momentum, self.nesterov)
        return in_float32(
            optax.chain(
                momentum if self.momentum else optax.identity(),
                scale_by_specs(specs, self.rules),
                optax.scale_by_learning_rate(rate),
            ),
            complex_numbers=True,
        )
