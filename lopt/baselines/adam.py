"""Adam and its kin: AdamW, NAdam, NAdamW."""

from __future__ import annotations

import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs
from lopt.baselines import base
from lopt.baselines.links import (
    add_decayed_weights,
    in_float32,
    scale_by_specs,
    unscale_gradients,
)
from lopt.schedules import AnySchedule
from parametrization.rules import STANDARD, Rules


@configuration
class Adam(base.RateTuned):
    """Adam (Kingma and Ba, arXiv:1412.6980).

    With weight decay it is AdamW (arXiv:1711.05101), with `nesterov` NAdam (Dozat,
    2016), with both NAdamW; with `rules=ADAM_LIKE`, μAdam.
    """

    learning_rate: float = 1e-3
    """Learning rate of `init`'s θ."""
    schedule: AnySchedule = "constant"
    """constant, cosine to zero at the end of the run, or phases of `lopt.schedules`."""
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
    nesterov: bool = False
    """Whether the momentum looks one step ahead."""

    def __post_init__(self) -> None:
        base.check_common(self)
        base.check_normalized(self.rules, "Adam's")
        checks.positive(self, "eps")
        checks.decay(self, "b1", "b2")
        checks.not_negative(self, "weight_decay")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer with any learning rate as a function of the step."""
        return in_float32(
            optax.chain(
                unscale_gradients(specs, self.rules),
                optax.scale_by_adam(self.b1, self.b2, self.eps, nesterov=self.nesterov),
                scale_by_specs(specs, self.rules),
                *add_decayed_weights(self.weight_decay),
                optax.scale_by_learning_rate(rate),
            )
        )
