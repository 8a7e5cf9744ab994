"""Adafactor: Adam's steps with a factored second moment."""

from __future__ import annotations

import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs
from lopt.baselines import base
from lopt.baselines.links import in_float32, scale_by_specs, unscale_gradients
from parametrization.rules import STANDARD


@configuration
class Adafactor(base.RateTuned):
    """Adafactor (Shazeer and Stern, arXiv:1804.04235), without momentum.

    μP needs `multiply_by_parameter_scale=False`, where steps are Θ(1) per element as
    the Adam-like column assumes. Otherwise they are proportional to the parameter's
    RMS, 1/√n for a hidden matrix, and the column's 1/n would make them n^(−3/2).

    As in optax, the two factored axes are the two largest, stacked ones included.
    """

    learning_rate: float = 1e-2
    """Initial learning rate; relative to the parameters' RMS by default."""
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
    """Decoupled weight decay: the learning rate multiplies it (unlike in optax), μP's
    step scale not."""

    def __post_init__(self) -> None:
        base.check_normalized(self.rules, "Adafactor's")
        checks.positive(self, "learning_rate", "decay_exponent", "clipping_threshold")
        checks.positive(self, "min_dim_size_to_factor", "eps")
        checks.not_negative(self, "weight_decay")
        if self.multiply_by_parameter_scale and self.rules is not STANDARD:
            raise ValueError(
                f"rules = {self.rules.name} cannot scale steps that are relative to "
                "the parameters: use multiply_by_parameter_scale = False"
            )

    @property
    def steps_follow_size(self) -> bool:
        """Whether a step is in units of its tensor (see `lopt.base.follows_size`)."""
        return self.multiply_by_parameter_scale

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer under a learning-rate schedule."""
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
