"""Muon: the momentum of a hidden matrix, orthogonalized; Adam for everything else.

An orthogonalized step has singular values near 1, so its spectral norm is known before
a gradient is seen, and a factor of the shape alone makes it what one wants:

* `aspect_ratio`, √max(1, fan-out/fan-in) (Jordan): the spectral norm that the spectral
  condition asks for, √(fan-out/fan-in), where fan-out is the larger.
* `consistent_rms`, 0.2·√max(fan-in, fan-out) (Liu et al.): elements of RMS 0.2, as
  Adam's are, so that one learning rate serves both.

**Which of them is right in μP?** Every layer moves alike at all widths if the spectral
norm of its step is Θ(√(fan-out/fan-in)). The first has that: it needs no factor as both
sides grow. The second grows as √n beyond it and has to be multiplied by 1/√n, not by
Adam's 1/n: Adam's step is aligned with its input, which makes its spectral norm n times
an element; an orthogonal one of the same RMS has √n. With `rules` other than STANDARD
both get the one factor that makes their spectral norm √(n_out/n_in) times that of the
base model, which is 1 at the base shape, and they differ by a constant.

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
from lopt.base import Specs
from lopt.baselines import base
from lopt.baselines.links import (
    add_decayed_weights,
    in_float32,
    map_with_specs,
    scale_by,
    unscale_gradients,
)
from lopt.schedules import AnySchedule
from parametrization.rules import STANDARD, Rules
from parametrization.spec import ParamSpec, Shape

Scaling = Literal["aspect_ratio", "consistent_rms"]
RMS = 0.2
"""RMS of Adam's steps over its learning rate, as Liu et al. measured it."""


@configuration
class Muon(base.RateTuned):
    """Muon for hidden tensors, AdamW for all other roles; both are optax's.

    Roles are those of the specs. A tensor becomes a matrix of its fan-in by its fan-out
    axes, whatever their number (a convolution, a kernel `width -> heads head_dim`);
    stacked axes are a batch of matrices. Orthogonalization takes place in float32.
    """

    learning_rate: float = 2e-2
    """Learning rate of `init`'s θ."""
    schedule: AnySchedule = "constant"
    """constant, cosine to zero at the end of the run, or phases of `lopt.schedules`."""
    scaling: Scaling = "aspect_ratio"
    """Factor of the shape on orthogonalized steps (see the module)."""
    adam_ratio: float = 1.0
    """Learning rate of Adam over that of Muon. With `aspect_ratio` Adam's is usually
    much smaller (.015); with `consistent_rms` they are meant to be the same."""
    momentum: float = 0.95
    """Decay of Muon's momentum."""
    nesterov: bool = True
    """Whether momenta, Adam's as well, look one step ahead."""
    newton_schulz_steps: int = 5
    """Iterations that orthogonalize."""
    b1: float = 0.9
    """Decay of Adam's momentum."""
    b2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment and to the Frobenius norm."""
    weight_decay: float = 0.0
    """Decoupled weight decay of all parameters, multiplied by the learning rate but
    neither by the ratio nor by factors of shape or μP."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: STANDARD, ADAM_LIKE or COMPLETEP; for
    hidden tensors it is the spectral condition that this means."""

    def __post_init__(self) -> None:
        base.check_common(self)
        base.check_normalized(self.rules, "Muon's")
        checks.positive(self, "adam_ratio", "eps", "newton_schulz_steps")
        checks.decay(self, "momentum", "b1", "b2")
        checks.not_negative(self, "weight_decay")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer with any learning rate as a function of the step."""

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
                unit,  # descends already
                scale_by(specs, self._factor),
                *add_decayed_weights(-self.weight_decay),
                optax.scale_by_schedule(rate),
            )
        )

    def _factor(self, spec: ParamSpec) -> float:
        """What is left to do for a step of optax's Muon with learning rate 1."""
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
    """Which axes are summed over and which are not; None for what is Adam's."""
    if spec.kind != "hidden" or 0 in (*spec.shape, *spec.base_shape):
        return None
    start = len(spec.axes.stacked)
    middle = start + len(spec.axes.fan_in)
    return MuonDimensionNumbers(
        tuple(range(start, middle)), tuple(range(middle, len(spec.shape)))
    )


def _fans(spec: ParamSpec, shape: Shape) -> tuple[int, int]:
    start = len(spec.axes.stacked)
    middle = start + len(spec.axes.fan_in)
    return math.prod(shape[start:middle]), math.prod(shape[middle:])
