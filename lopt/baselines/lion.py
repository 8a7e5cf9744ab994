"""Lion: the sign of a momentum."""

from __future__ import annotations

import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs
from lopt.baselines import base
from lopt.baselines.links import add_decayed_weights, in_float32, scale_by_specs


@configuration
class Lion(base.RateTuned):
    """Lion (Chen et al., arXiv:2302.06675); with `rules=ADAM_LIKE`, μLion.

    Every element moves by the learning rate, whatever the gradient's scale, so the
    Adam-like column holds exactly and no epsilon depends on the width. Good learning
    rates are 3 to 10 times smaller than Adam's.
    """

    learning_rate: float = 1e-4
    """Initial learning rate, the whole of θ."""
    b1: float = 0.9
    """Share of the momentum in the step's sign; the gradient has the rest."""
    b2: float = 0.99
    """Decay of the momentum."""
    weight_decay: float = 0.0
    """Decoupled weight decay: the learning rate multiplies it, μP's step scale not."""

    def __post_init__(self) -> None:
        base.check_normalized(self.rules, "Lion's")
        checks.positive(self, "learning_rate")
        checks.decay(self, "b1", "b2")
        checks.not_negative(self, "weight_decay")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer under a learning-rate schedule."""
        return in_float32(
            optax.chain(
                optax.scale_by_lion(self.b1, self.b2),
                scale_by_specs(specs, self.rules),
                *add_decayed_weights(self.weight_decay),
                optax.scale_by_learning_rate(rate),
            )
        )
