"""Muon: the momentum of a hidden matrix, orthogonalized; Adam for everything else.

The singular values of an orthogonalized step are near 1, so a factor of the shape alone
sets its size:

* `aspect_ratio`, √max(1, fan-out/fan-in) (Jordan): the spectral norm that the spectral
  condition asks for, √(fan-out/fan-in), where fan-out is the larger.
* `consistent_rms`, 0.2·√max(fan-in, fan-out) (Liu et al.): elements of RMS 0.2, as
  Adam's are, so that one learning rate serves both.

In μP every layer moves alike at all widths if the spectral norm of its step is
Θ(√(fan-out/fan-in)). The first needs no factor as both sides grow. The second needs
1/√n, not Adam's 1/n: Adam's step is aligned with its input, so its spectral norm is n
times an element's size; that of an orthogonal step is √n times. Under `rules` other
than STANDARD both are scaled to √(n_out/n_in) times their norm at the base shape.

References:
    Jordan et al., Muon, 2024; Liu et al., Muon is scalable for LLM training,
    arXiv:2502.16982; Yang et al., A spectral condition for feature learning,
    arXiv:2310.17813.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import optax
from optax.contrib import MuonDimensionNumbers, muon

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs, map_with_specs
from lopt.baselines import base
from lopt.baselines.links import (
    add_decayed_weights,
    in_float32,
    scale_by,
    unscale_gradients,
)
from parametrization.rules import STANDARD
from parametrization.spec import ParamSpec, Shape

Scaling = Literal["aspect_ratio", "consistent_rms"]
RMS = 0.2
"""RMS of Adam's steps over its learning rate, as Liu et al. measured it."""


@configuration
class Muon(base.RateTuned):
    """Muon for hidden tensors, AdamW for all other roles; both are optax's.

    A tensor becomes a matrix of its fan-in by its fan-out axes, whatever their number
    (a convolution, a kernel `width -> heads head_dim`); stacked axes are a batch of
    matrices. Under μP's `rules` hidden tensors obey the spectral condition.
    Orthogonalization is in float32.
    """

    learning_rate: float = 2e-2
    """Initial learning rate, the whole of θ."""
    scaling: Scaling = "aspect_ratio"
    """Factor of the shape on orthogonalized steps (see the module's docstring)."""
    adam_ratio: float = 1.0
    """Learning rate of Adam over that of Muon: usually about .015 with `aspect_ratio`,
    1 with `consistent_rms`."""
    momentum: float = 0.95
    """Decay of Muon's momentum."""
    nesterov: bool = True
    """Whether both momenta, Muon's and Adam's, look one step ahead."""
    newton_schulz_steps: int = 5
    """Iterations that orthogonalize."""
    b1: float = 0.9
    """Decay of Adam's momentum."""
    b2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment and to the Frobenius norm."""
    weight_decay: float = 0.0
    """Decoupled weight decay of all parameters: the learning rate multiplies it,
    `adam_ratio`, the shape's factor and μP's do not."""

    def __post_init__(self) -> None:
        base.check_normalized(self.rules, "Muon's")
        checks.positive(self, "learning_rate", "adam_ratio", "eps")
        checks.positive(self, "newton_schulz_steps")
        checks.decay(self, "momentum", "b1", "b2")
        checks.not_negative(self, "weight_decay")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer under a learning-rate schedule."""

        def dimension_numbers(params: Any) -> Any:
            return map_with_specs(lambda _, s: _matricization(s), params, specs)

        unit = muon(
            1.0,
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            eps=self.eps,
            nesterov=self.nesterov,
            adam_b1=self.b1,
            adam_b2=self.b2,
            consistent_rms=RMS if self.scaling == "consistent_rms" else None,
            muon_weight_dimension_numbers=dimension_numbers,
        )
        return in_float32(
            optax.chain(
                unscale_gradients(specs, self.rules),
                # Its steps already point downhill.
                unit,
                scale_by(specs, self._factor),
                *add_decayed_weights(-self.weight_decay),
                optax.scale_by_schedule(rate),
            )
        )

    def _factor(self, spec: ParamSpec) -> float:
        """Returns the factor on a step of optax's Muon at learning rate 1."""
        if _matricization(spec) is None:
            return self.adam_ratio * self.rules.step_scale(spec)
        if self.rules is STANDARD:
            return 1.0
        now, at_base = (
            self._spectral_norm(*_fans(spec, shape))
            for shape in (spec.shape, spec.base_shape)
        )
        return self.rules.spectral_scale(spec) * (at_base / now)

    def _spectral_norm(self, fan_in: int, fan_out: int) -> float:
        if self.scaling == "consistent_rms":
            return RMS * math.sqrt(max(fan_in, fan_out))
        return math.sqrt(max(1.0, fan_out / fan_in))


def _matricization(spec: ParamSpec) -> MuonDimensionNumbers | None:
    """Returns the fan-in and fan-out axes; None for a tensor that Adam moves."""
    if spec.kind != "hidden" or 0 in (*spec.shape, *spec.base_shape):
        return None
    start = len(spec.axes.stacked)
    middle = start + len(spec.axes.fan_in)
    axes = spec.order or tuple(range(len(spec.shape)))
    return MuonDimensionNumbers(axes[start:middle], axes[middle:])


def _fans(spec: ParamSpec, shape: Shape) -> tuple[int, int]:
    start = len(spec.axes.stacked)
    middle = start + len(spec.axes.fan_in)
    return math.prod(shape[start:middle]), math.prod(shape[middle:])
