"""The only place with exponents of the parametrization.

A parametrization says, for each kind of parameter, how three things scale with
n = fan-in / base fan-in: the standard deviation at initialization, a multiplier in the
forward pass, and the size of an optimizer's step. At the base shape n = 1 and all
parametrizations agree bit for bit.

The Adam-like column holds for any optimizer whose step is Θ(1) per element whatever the
scale of the gradient: Adam, Lion, and learned optimizers whose inputs are normalized
per tensor.

References:
    Yang et al., Tensor Programs V, arXiv:2203.03466, Table 8 (readout in the
    multiplier form, Table 9); Thérien et al., μLO, arXiv:2406.00153, Section 4.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable

import jax

from parametrization.axes import Axes
from parametrization.spec import Named, ParamSpec, named


@dataclasses.dataclass(frozen=True)
class _Table:
    """Exponents of n = fan-in / base fan-in; every kind not named has exponent 0."""

    hidden_step: int
    output_forward: int
    gradient: int


class Rules(enum.Enum):
    """A parametrization: one column of the table of exponents."""

    STANDARD = _Table(hidden_step=0, output_forward=0, gradient=0)
    ADAM_LIKE = _Table(hidden_step=-1, output_forward=-1, gradient=-1)

    def step_scale(self, spec: ParamSpec) -> float:
        """Factor on the optimizer's step for this parameter."""
        exponent = self.value.hidden_step if spec.kind == "hidden" else 0
        return spec.fan_in_mult**exponent

    def forward_scale(self, fan_in: int, base_fan_in: int) -> float:
        """Factor on the product of a readout with its input (the bias is outside)."""
        return (fan_in / base_fan_in) ** self.value.output_forward

    def gradient_scale(self, spec: ParamSpec) -> float:
        """How this parameter's gradient shrinks with width, 1 at the base shape.

        With the readout in multiplier form the error that reaches a unit is Θ(1/n) in
        the number of units of its layer. What an optimizer compares with an absolute
        floor (Adam's epsilon) must shrink by the same factor.
        """
        mult = spec.fan_in_mult if spec.kind == "output" else spec.fan_out_mult
        return mult**self.value.gradient


STANDARD = Rules.STANDARD
ADAM_LIKE = Rules.ADAM_LIKE


def init_std(axes: Axes, shape: tuple[int, ...]) -> float:
    """Standard deviation at initialization: the same in both parametrizations.

    Readouts, biases and scalars start at 0 (so logits are exactly 0 and the loss is
    ln C); every other matrix at 1/√fan-in, which is constant in width for inputs.
    """
    if axes.kind in ("output", "vector", "scalar"):
        return 0.0
    return 1.0 / math.sqrt(ParamSpec(axes, shape, shape).fan_in)


def initializer(axes: str) -> Callable[..., Named]:
    """A `named` initializer that draws normal values with `init_std`."""
    parsed = Axes.parse(axes)

    def draw(
        key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = float
    ) -> jax.Array:
        std = init_std(parsed, shape)
        if std == 0.0:
            return jax.numpy.zeros(shape, dtype)
        return std * jax.random.normal(key, shape, dtype)

    return named(draw, axes)
