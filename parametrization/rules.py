"""The exponents of every parametrization, in one table.

A parametrization says how initialization, the forward pass and optimizer steps change
with the shape of a network relative to a base model. Write

    n_in, n_out   a parameter's fan-in and fan-out over those in the base model
                  (1 for a side without an axis that scales),
    m             the number of residual blocks over that of the base model,
    d             the size of an attention head.

At the base shape every ratio is 1 and all parametrizations coincide bit for bit.

| quantity | standard | μP, Adam-like | μP, SGD-like | CompleteP |
|---|---|---|---|---|
| init std: output, vector, scalar | 0 | 0 | 0 | as in μP |
| init std: output, if drawn | 1/√fan-in | √(n_in/fan-in) | √(n_in/fan-in) | as in μP |
| init std: any other matrix | 1/√fan-in | 1/√fan-in | 1/√fan-in | as in μP |
| output multiplier | 1 | 1/n_in | 1/n_in | as in μP |
| attention logits | 1/√d | 1/d | 1/d | as in μP |
| residual branch | 1 | 1 | 1 | 1/m |
| step: hidden | 1 | 1/n_in | n_out/n_in | as in μP; SGD-like × m in blocks |
| step: output | 1 | 1 | n_in | as in μP |
| step: input, vector | 1 | 1 | n_out | as in μP; SGD-like × m in blocks |
| step: scalar, fixed | 1 | 1 | 1 | as in μP; SGD-like × m in blocks |
| gradient, epsilon: output | 1 | 1/n_in | 1/n_in | as in μP |
| gradient, epsilon: others | 1 | 1/n_out | 1/n_out | as in μP; × 1/m in blocks |

The Adam-like column holds for steps that are Θ(1) per element whatever the scale of the
gradient: Adam, Lion, learned optimizers with normalized inputs. The SGD-like column
holds for steps proportional to the gradient. A tied readout has the output multiplier
1/n; its table is an embedding, so an input. A readout W whose model has no multiplier
(`ParamSpec.readout = "step"`) stands for 1/n_in times that of the table: its step is
1/n_in (Adam-like and SGD-like), its gradient does not shrink.

Sources:

*   Yang et al., Tensor Programs V, arXiv:2203.03466. Table 8 has the rows of the output
    multiplier and of the steps (there n_out = n_in, so "1" for SGD's hidden step);
    Table 3 is the equivalent form without a multiplier. 1/d attention: Definition 4.1.
*   Thérien et al., μLO, arXiv:2406.00153, Section 4: learned optimizers take the
    Adam-like column.
*   Dey et al., CompleteP, arXiv:2505.01618, Table 1 (α = 1): the residual branch. The
    SGD-like column with depth follows, as a gradient inside a block shrinks by 1/m.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any, Literal

import jax

from parametrization.axes import Axes, Kind
from parametrization.spec import Named, ParamSpec, named

ReadoutInit = Literal["zero", "lecun"]
"""Start of the readouts: zero, or drawn with `readout_std`."""

_ADAM_STEPS: dict[Kind, tuple[int, int]] = {"hidden": (-1, 0)}
_SGD_STEPS: dict[Kind, tuple[int, int]] = {
    "hidden": (-1, 1),
    "output": (1, 0),
    "input": (0, 1),
    "vector": (0, 1),
}
"""Exponents of (n_in, n_out) in the step, by kind; (0, 0) for the others."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Exponents:
    """One column of the table; 0 unless stated."""

    forward: int = 0
    """Exponent of n_in in the output multiplier, and of √d beyond 1/√d."""
    residual: int = 0
    """Exponent of m in the residual branch."""
    steps: dict[Kind, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Exponents of (n_in, n_out) in the step, by kind."""
    block_step: int = 0
    """Exponent of m in the step of every parameter inside a residual block."""
    sgd_like: bool = False
    """Whether steps are proportional to the gradient rather than Θ(1)."""


class Rules(enum.Enum):
    """A parametrization: one column of the table."""

    STANDARD = _Exponents()
    ADAM_LIKE = _Exponents(forward=-1, steps=_ADAM_STEPS)
    SGD_LIKE = _Exponents(forward=-1, steps=_SGD_STEPS, sgd_like=True)
    COMPLETEP = _Exponents(forward=-1, residual=-1, steps=_ADAM_STEPS)
    COMPLETEP_SGD_LIKE = _Exponents(
        forward=-1, residual=-1, steps=_SGD_STEPS, block_step=1, sgd_like=True
    )

    def __repr__(self) -> str:
        return f"Rules.{self.name}"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Pickled by name: members compare by identity, so not by value.
        return getattr, (Rules, self.name)

    @property
    def sgd_like(self) -> bool:
        """Whether steps are proportional to the gradient rather than Θ(1)."""
        return self.value.sgd_like

    @property
    def for_sgd(self) -> Rules:
        """The parametrization with the same forward pass and SGD-like steps."""
        twins = {"ADAM_LIKE": "SGD_LIKE", "COMPLETEP": "COMPLETEP_SGD_LIKE"}
        return Rules[twins.get(self.name, self.name)]

    def forward_scale(self, fan_in: int, base_fan_in: int) -> float:
        """Output multiplier: the factor on a readout's product, outside the bias."""
        return (fan_in / base_fan_in) ** self.value.forward

    def attention_scale(self, head_dim: int, base_head_dim: int) -> float:
        """Factor on q·k: 1/√d, or √base_d/d in μP, equal at the base head size."""
        grown = (head_dim / base_head_dim) ** (0.5 * self.value.forward)
        return grown / math.sqrt(head_dim)

    def residual_scale(self, depth: int, base_depth: int) -> float:
        """Factor on every residual branch of a network of `depth` blocks."""
        return (depth / base_depth) ** self.value.residual

    def step_scale(self, spec: ParamSpec) -> float:
        """Factor on the optimizer's step for this parameter."""
        fan_in, fan_out = self.value.steps.get(spec.kind, (0, 0))
        scale = spec.fan_in_mult**fan_in * spec.fan_out_mult**fan_out
        folded = self._folded(spec)
        # A rule whose steps follow the gradient sees that of the folded matrix too.
        scale *= folded**2 if self.sgd_like else folded
        return scale * spec.depth_mult**self.value.block_step

    def _folded(self, spec: ParamSpec) -> float:
        """Output multiplier that a readout without one holds in its own elements."""
        if spec.kind != "output" or spec.readout == "multiplier":
            return 1.0
        return spec.fan_in_mult**self.value.forward

    def gradient_scale(self, spec: ParamSpec) -> float:
        """Factor by which this parameter's gradient shrinks with the network.

        With an output multiplier, the error that reaches a unit is Θ(1/n) in the number
        n of units of its layer. What an optimizer compares with an absolute floor, such
        as Adam's epsilon, must shrink alike. 1 in the standard parametrization, which
        makes no such promise.
        """
        mult = spec.fan_in_mult if spec.kind == "output" else spec.fan_out_mult
        scale = mult**self.value.forward * spec.depth_mult**self.value.residual
        return scale / self._folded(spec)

    def spectral_scale(self, spec: ParamSpec) -> float:
        """Factor on the spectral norm of a matrix's step: √(n_out/n_in).

        For rules such as Muon that fix this norm whatever the gradient (Yang et al., A
        Spectral Condition for Feature Learning, arXiv:2310.17813, Condition 1). For a
        hidden matrix it agrees with the factor 1/n_in on elements that align with their
        input, as Adam's do. A readout's is n_in times as large, which its multiplier
        undoes.
        """
        scale = (spec.fan_in_mult / spec.fan_out_mult) ** (0.5 * self.value.forward)
        readout = spec.fan_in_mult**-self.value.forward
        return scale * readout * self._folded(spec) if spec.kind == "output" else scale

    def orthogonal_step_scale(self, spec: ParamSpec) -> float:
        """Factor on a matrix's step that is orthogonalized and brought to RMS 1.

        Every singular value of such a step grows by √max(n_in, n_out); this factor
        makes it grow by `spectral_scale` instead.
        """
        if self is Rules.STANDARD or spec.kind not in ("hidden", "input", "output"):
            return self.step_scale(spec)
        base = max(spec.fan_in / spec.fan_in_mult, spec.fan_out / spec.fan_out_mult)
        grown = max(spec.fan_in, spec.fan_out) / base if base else 1.0
        return self.spectral_scale(spec) / math.sqrt(grown)


STANDARD = Rules.STANDARD
ADAM_LIKE = Rules.ADAM_LIKE
SGD_LIKE = Rules.SGD_LIKE
COMPLETEP = Rules.COMPLETEP
COMPLETEP_SGD_LIKE = Rules.COMPLETEP_SGD_LIKE


def init_std(axes: Axes, shape: tuple[int, ...]) -> float:
    """Returns the standard deviation at initialization, in every parametrization.

    Outputs, vectors and scalars start at 0, so logits are exactly 0 and the loss is
    ln C. Other matrices start at 1/√fan-in, which is 1 for embeddings.
    """
    if axes.kind in ("output", "vector", "scalar"):
        return 0.0
    return 1.0 / math.sqrt(max(ParamSpec(axes, shape, shape).fan_in, 1))


def readout_std(fan_in: int, multiplier: float) -> float:
    """Returns the standard deviation of a readout that is drawn rather than zero.

    1/√fan-in (LeCun) at the base shape and in the standard parametrization, so logits
    have size 1 at every width there. In μP the elements keep the size that they have in
    the base model, 1/√base fan-in, since every width moves them by the same steps; with
    the multiplier 1/n_in, logits then start at 1/√n_in and so never grow.

    Args:
        fan_in: inputs of the layer.
        multiplier: the output multiplier (see `Rules.forward_scale`).
    """
    return 1.0 / math.sqrt(multiplier * fan_in)


def drawn_zeros(
    key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = float
) -> jax.Array:
    """Returns zeros that the compiler does not know to be zeros.

    On CPUs, jaxlib 0.10.2 miscomputes the mean of a product with a constant matrix,
    which a loss at initialization is when both are in one program.
    """
    return (0.0 * jax.random.uniform(key, (math.prod(shape),), dtype)).reshape(shape)


def initializer(
    axes: str, depth_mult: float = 1.0, std: float | None = None
) -> Callable[..., Named]:
    """Returns a `named` initializer that draws normal values.

    Args:
        axes: of the parameter.
        depth_mult: that of the residual block around it, 1 outside.
        std: standard deviation; by default `init_std`.
    """
    parsed = Axes.parse(axes)

    def draw(
        key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = float
    ) -> jax.Array:
        size = init_std(parsed, shape) if std is None else std
        if size == 0.0 and len(shape) < 2:
            return jax.numpy.zeros(shape, dtype)
        if size == 0.0:
            return drawn_zeros(key, shape, dtype)
        # Drawn flat: the same bits, in a fraction of the time to compile.
        flat = jax.random.normal(key, (math.prod(shape),), dtype)
        return (size * flat).reshape(shape)

    return named(draw, axes, depth_mult)
