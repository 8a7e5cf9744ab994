"""Adafactor: Adam's steps with a second moment that is kept as rows and columns."""

from __future__ import annotations

import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs
from lopt.baselines import base
from lopt.baselines.links import in_float32, scale_by_specs, unscale_gradients
from lopt.schedules import AnySchedule
from parametrization.rules import STANDARD, Rules


@configuration
class Adafactor(base.RateTuned):
    """Adafactor (Shazeer and Stern, arXiv:1804.04235), without momentum.

    **μP** needs `multiply_by_parameter_scale=False`: steps are then Θ(1) per element
    and the Adam-like column holds. With it they are proportional to the RMS of the
    parameter, which is 1/√n for a hidden matrix, so that the factor 1/n_in of that
    column would make them n^(−3/2) where μP wants 1/n; such rules are refused.

    As in optax, the two factored axes are the two largest, stacked ones included.
    """

    learning_rate: float = 1e-2
    """Learning rate of `init`'s θ; relative to the parameters' RMS by default."""
    schedule: AnySchedule = "constant"
    """constant, cosine to zero at the end of the run, or phases of `lopt.schedules`."""
    decay_exponent: float = 0.8
    """c of the second moment's decay 1 − t^(−c)."""
    clipping_threshold: float = 1.0
    """Largest RMS of a tensor's step before the learning rate."""
    multiply_by_parameter_scale: bool = True
    """Whether steps are relative to the RMS of the parameter (at least 1e-3)."""
    min_dim_size_to_factor: int = 128
    """Tensors whose second largest axis is smaller keep the whole second moment."""
    eps: float = 1e-30
    """Added to the square of the gradient."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate (in optax it is not) but
    not by μP's step scale."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, ADAM_LIKE or COMPLETEP."""

    def __post_init__(self) -> None:
        base.check_common(self)
        base.check_normalized(self.rules, "Adafactor's")
        checks.positive(
            self,
            "decay_exponent",
            "clipping_threshold",
            "min_dim_size_to_factor",
            "eps",
        )
        checks.not_negative(self, "weight_decay")
        if self.multiply_by_parameter_scale and self.rules is not STANDARD:
            raise ValueError(
                f"rules = {self.rules.name} cannot scale steps that are relative to "
                "the parameters: use multiply_by_parameter_scale = False"
            )

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer with any learning rate as a function of the step."""
        steps = optax.adafactor(
            rate,
            min_dim_size_to_factor=self.min_dim_size_to_factor,
            decay_rate=self.decay_exponent,
            multiply_by_parameter_scale=self.multiply_by_parameter_scale,
            clipping_threshold=self.clipping_threshold,
            eps=self.eps,
        )
        decay = optax.add_decayed_weights(
            lambda count: -self.weight_decay * rate(count)
        )
        return in_float32(
            optax.chain(
                unscale_gradients(specs, self.rules),
                steps,
                scale_by_specs(specs, self.rules),
                *([decay] if self.weight_decay else []),
            )
        )
