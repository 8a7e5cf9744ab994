"""Adam, AdamW, NAdam and NAdamW."""

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


@configuration
class Adam(base.RateTuned):
    """Adam (Kingma and Ba, arXiv:1412.6980).

    With weight decay it is AdamW (arXiv:1711.05101), with `nesterov` NAdam (Dozat,
    2016), with both NAdamW; with `rules=ADAM_LIKE`, μAdam.
    """

    learning_rate: float = 1e-3
    """Initial learning rate, the whole of θ."""
    b1: float = 0.9
    """Decay of the momentum."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment; in μP it shrinks as gradients do."""
    weight_decay: float = 0.0
    """Decoupled weight decay: the learning rate multiplies it, μP's step scale not."""
    nesterov: bool = False
    """Whether the momentum looks one step ahead."""

    def __post_init__(self) -> None:
        base.check_normalized(self.rules, "Adam's")
        checks.positive(self, "learning_rate", "eps")
        checks.decay(self, "b1", "b2")
        checks.not_negative(self, "weight_decay")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer under a learning-rate schedule."""
        return in_float32(
            optax.chain(
                unscale_gradients(specs, self.rules),
                optax.scale_by_adam(self.b1, self.b2, self.eps, nesterov=self.nesterov),
                scale_by_specs(specs, self.rules),
                *add_decayed_weights(self.weight_decay),
                optax.scale_by_learning_rate(rate),
            ),
            complex_numbers=True,
        )
