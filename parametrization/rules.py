"""The only place with exponents of the parametrization.

A parametrization says how a network's initialization, its forward pass and the steps of
its optimizer change with three ratios to the base model: n_in and n_out, a parameter's
fan-in and fan-out over their base sizes, and m, the number of residual blocks over that
of the base model. At the base shape all are 1 and all parametrizations agree bit for
bit.

μP has two columns for the optimizer. The *Adam-like* one holds for any rule whose step
is Θ(1) per element whatever the scale of the gradient: Adam, Lion, and learned
optimizers whose inputs are normalized per tensor. The *SGD-like* one holds for steps
proportional to the gradient. The forward pass is the same in both. *CompleteP* adds
depth: every residual branch is multiplied by 1/m (α = 1), which leaves Adam-like steps
as they are.

| exponent of | standard | μP, Adam-like | μP, SGD-like | CompleteP |
|---|---|---|---|---|
| readout's product | 1 | 1/n_in | 1/n_in | as in μP |
| logits of a tied readout | 1 | 1/n | 1/n | as in μP |
| attention logits | 1/√d | 1/d | 1/d | as in μP |
| residual branch | 1 | 1 | 1 | 1/m |
| step: hidden | 1 | 1/n_in | n_out/n_in | as in μP; SGD-like × m in blocks |
| step: output | 1 | 1 | n_in | as in μP |
| step: input, vector | 1 | 1 | n_out | as in μP; SGD-like × m in blocks |
| step: scalar, fixed | 1 | 1 | 1 | as in μP; SGD-like × m in blocks |
| gradient (and epsilon) | – | 1/n_out, output 1/n_in | the same | × 1/m in blocks |

References:
    Yang et al., Tensor Programs V, arXiv:2203.03466, Table 8 (readout in the
    multiplier form, Table 9); Thérien et al., μLO, arXiv:2406.00153, Section 4;
    Dey et al., CompleteP, arXiv:2505.01618, Table 1. The SGD-like column with depth
    follows from the same argument: a gradient in a block is 1/m of what it was.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any

import jax

from parametrization.axes import Axes, Kind
from parametrization.spec import Named, ParamSpec, named


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """Exponents; every kind and every quantity not named has exponent 0."""

    forward: int = 0
    """Of n, of a readout's product; and of d beyond 1/√d, of attention."""
    residual: int = 0
    """Of m, of a residual branch."""
    steps: dict[Kind, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Of (n_in, n_out), of the step, by kind."""
    block_step: int = 0
    """Of m, of the step of every parameter inside a residual block."""
    for_gradients: bool = False
    """Whether steps are proportional to the gradient rather than Θ(1)."""


_ADAM_STEPS: dict[Kind, tuple[int, int]] = {"hidden": (-1, 0)}
_SGD_STEPS: dict[Kind, tuple[int, int]] = {
    "hidden": (-1, 1),
    "output": (1, 0),
    "input": (0, 1),
    "vector": (0, 1),
}


class Rules(enum.Enum):
    """A parametrization: one column of the table of exponents."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Travels between processes by its name."""
        return getattr, (Rules, self.name)

    STANDARD = _Table()
    ADAM_LIKE = _Table(forward=-1, steps=_ADAM_STEPS)
    SGD_LIKE = _Table(forward=-1, steps=_SGD_STEPS, for_gradients=True)
    COMPLETEP = _Table(forward=-1, residual=-1, steps=_ADAM_STEPS)
    COMPLETEP_SGD_LIKE = _Table(
        forward=-1, residual=-1, steps=_SGD_STEPS, block_step=1, for_gradients=True
    )

    def __repr__(self) -> str:
        return f"Rules.{self.name}"

    @property
    def sgd_like(self) -> bool:
        """Whether the step column is that of steps proportional to the gradient."""
        return self.value.for_gradients

    @property
    def for_sgd(self) -> Rules:
        """The parametrization of the same forward pass with SGD-like steps."""
        twins = {"ADAM_LIKE": "SGD_LIKE", "COMPLETEP": "COMPLETEP_SGD_LIKE"}
        return Rules[twins.get(self.name, self.name)]

    def step_scale(self, spec: ParamSpec) -> float:
        """Factor on the optimizer's step for this parameter."""
        fan_in, fan_out = self.value.steps.get(spec.kind, (0, 0))
        scale = spec.fan_in_mult**fan_in * spec.fan_out_mult**fan_out
        return scale * spec.depth_mult**self.value.block_step

    def spectral_scale(self, spec: ParamSpec) -> float:
        """Factor on the spectral norm of a matrix's step: √(n_out/n_in).

        For rules that fix the norm whatever the gradient, as Muon does (the spectral
        condition, Yang et al., arXiv:2310.17813, Condition 1). Of a hidden matrix it
        says the same as the factor 1/n_in on elements that are aligned with their
        input, as Adam's are. A readout's is n_in times as large: its multiplier divides
        by n_in again.
        """
        scale = (spec.fan_in_mult / spec.fan_out_mult) ** (0.5 * self.value.forward)
        readout = spec.fan_in_mult**-self.value.forward
        return scale * readout if spec.kind == "output" else scale

    def orthogonal_step_scale(self, spec: ParamSpec) -> float:
        """Factor on a matrix's step that is orthogonalized and brought to RMS 1.

        All singular values of such a step are √max(n_in, n_out), whatever the data,
        where `spectral_scale` says what they should grow by.
        """
        if self is Rules.STANDARD or spec.kind not in ("hidden", "input", "output"):
            return self.step_scale(spec)
        base = max(spec.fan_in / spec.fan_in_mult, spec.fan_out / spec.fan_out_mult)
        grown = max(spec.fan_in, spec.fan_out) / base if base else 1.0
        return self.spectral_scale(spec) / math.sqrt(grown)

    def forward_scale(self, fan_in: int, base_fan_in: int) -> float:
        """Factor on the product of a readout with its input (the bias is outside)."""
        return (fan_in / base_fan_in) ** self.value.forward

    def attention_scale(self, head_dim: int, base_head_dim: int) -> float:
        """Factor on q·k: 1/√d, in μP √d_base/d, which is the same at the base width."""
        grown = (head_dim / base_head_dim) ** (0.5 * self.value.forward)
        return grown / math.sqrt(head_dim)

    def residual_scale(self, depth: int, base_depth: int) -> float:
        """Factor on every residual branch of a network of `depth` blocks."""
        return (depth / base_depth) ** self.value.residual

    def gradient_scale(self, spec: ParamSpec) -> float:
        """How this parameter's gradient shrinks with the network, 1 at the base shape.

        With the readout in multiplier form the error that reaches a unit is Θ(1/n) in
        the number of units of its layer. What an optimizer compares with an absolute
        floor (Adam's epsilon) must shrink by the same factor. 1 in the standard
        parametrization, which makes no such promise.
        """
        mult = spec.fan_in_mult if spec.kind == "output" else spec.fan_out_mult
        return mult**self.value.forward * spec.depth_mult**self.value.residual


STANDARD = Rules.STANDARD
ADAM_LIKE = Rules.ADAM_LIKE
SGD_LIKE = Rules.SGD_LIKE
COMPLETEP = Rules.COMPLETEP
COMPLETEP_SGD_LIKE = Rules.COMPLETEP_SGD_LIKE


def init_std(axes: Axes, shape: tuple[int, ...]) -> float:
    """Standard deviation at initialization: the same in all parametrizations.

    Readouts, biases and scalars start at 0 (so logits are exactly 0 and the loss is
    ln C); every other matrix at 1/√(number of terms summed), which is constant in width
    for inputs and 1 for embeddings.
    """
    if axes.kind in ("output", "vector", "scalar"):
        return 0.0
    return 1.0 / math.sqrt(max(ParamSpec(axes, shape, shape).fan_in, 1))


def drawn_zeros(
    key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = float
) -> jax.Array:
    """Zeros that the compiler does not know to be zeros.

    jaxlib 0.10.2 for CPUs computes the mean of a product with a constant matrix
    wrongly, which is what a loss at initialization is when both are in one program.
    """
    return (0.0 * jax.random.uniform(key, (math.prod(shape),), dtype)).reshape(shape)


def initializer(axes: str, depth_mult: float = 1.0) -> Callable[..., Named]:
    """A `named` initializer that draws normal values with `init_std`."""
    parsed = Axes.parse(axes)

    def draw(
        key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = float
    ) -> jax.Array:
        std = init_std(parsed, shape)
        if std == 0.0 and len(shape) < 2:
            return jax.numpy.zeros(shape, dtype)
        if std == 0.0:
            return drawn_zeros(key, shape, dtype)
        # Drawn flat: the same bits, in a fraction of the time to compile.
        flat = jax.random.normal(key, (math.prod(shape),), dtype)
        return (std * flat).reshape(shape)

    return named(draw, axes, depth_mult)
