"""Lion: the sign of a momentum."""

from __future__ import annotations

import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs
from lopt.baselines import base
from lopt.baselines.links import add_decayed_weights, in_float32, scale_by_specs
from lopt.schedules import AnySchedule
from parametrization.rules import STANDARD, Rules


@configuration
class Lion(base.RateTuned):
    """Lion (Chen et al., arXiv:2302.06675); with `rules=ADAM_LIKE`, μLion.

    Every element moves by the learning rate, whatever the gradient's scale, so the
    Adam-like column holds exactly, and there is no floor that a width could meet. Good
    learning rates are 3 to 10 times smaller than Adam's.
    """

    learning_rate: float = 1e-4
    """Learning rate of `init`'s θ."""
    schedule: AnySchedule = "constant"
    """constant, cosine to zero at the end of the run, or phases of `lopt.schedules`."""
    b1: float = 0.9
    """Share of the momentum in the step's sign; the gradient has the rest."""
    b2: float = 0.99
    """Decay of the momentum."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate but not by μP's step
    scale, so that its strength does not depend on the width."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, ADAM_LIKE or COMPLETEP."""

    def __post_init__(self) -> None:
        base.check_common(self)
        base.check_normalized(self.rules, "Lion's")
        checks.decay(self, "b1", "b2")
        checks.not_negative(self, "weight_decay")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer with any learning rate as a function of the step."""
        return in_float32(
            optax.chain(
                optax.scale_by_lion(self.b1, self.b2),
                scale_by_specs(specs, self.rules),
                *add_decayed_weights(self.weight_decay),
                optax.scale_by_learning_rate(rate),
            )
        )
