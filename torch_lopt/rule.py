"""The hyperparameters of the small_fc update rule, and the order of its features.

small_fc keeps, for every tensor, momenta (`Km` decays), a second moment (one decay) and
Adafactor's factored second moments (`Kf` decays). From them it forms for every element
a vector of features, each divided by its RMS over the tensor, and adds features of the
time. A small network with ReLUs maps them to a direction d and a magnitude a; the step
is `step_mult * d * exp(exp_mult * a)`.

References:
    Metz et al., arXiv:2203.11860, Section 3 (the architecture); Thérien et al.,
    arXiv:2406.00153 (the same rule with μP step scales).
"""

import dataclasses
import math
from collections.abc import Sequence

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
RULES = ("STANDARD", "ADAM_LIKE")
FACTORED_AXES = ("tensor", "matrix")
MOST_DECAYS = 100
LARGEST = 3.4028234663852886e38
"""Largest number of float32."""


@dataclasses.dataclass(frozen=True)
class Epsilons:
    """The floors of the rule; the defaults are the papers'.

    Attributes:
        normalizer: a feature x becomes `x * rsqrt(normalizer + mean x²)`.
        second_moment: added to v in `rsqrt(v + .)`.
        row_col: added to the factored moments in `rsqrt(row + .)`, `rsqrt(col + .)`.
        factored: every floor inside the factored preconditioner.
        gradient_square: added to g² before it enters the factored moments.
        one_dimensional: `m * (v + .)^-0.5`, for tensors of rank below 2.
    """

    normalizer: float = 1e-5
    second_moment: float = 1e-6
    row_col: float = 1e-8
    factored: float = 1e-9
    gradient_square: float = 1e-30
    one_dimensional: float = 1e-6

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 1e-37 <= value <= 1e10:
                raise ValueError(
                    f"epsilon {field.name} must be in [1e-37, 1e10], is {value}"
                )


def effective_decays(
    initial: Sequence[float], offsets: Sequence[float]
) -> tuple[float, ...]:
    """Applies learned offsets: `1 - exp(10 (ln(1 - d) / 10 + offset))` in [0, 1]."""
    logarithms = (
        math.log1p(-d) + 10.0 * offset
        for d, offset in zip(initial, offsets, strict=True)
    )
    # exp(0) = 1 is where 1 - decay is clipped, so nothing larger is exponentiated.
    return tuple(1.0 - math.exp(min(x, 0.0)) for x in logarithms)


@dataclasses.dataclass(frozen=True)
class SmallFC:
    """Hyperparameters of the rule; the weights of its network are apart.

    Attributes:
        hidden_size: units of every hidden layer.
        hidden_layers: number of hidden layers.
        step_mult: scale of the step.
        exp_mult: scale of the magnitude before it is exponentiated.
        momentum_decays: `Km` initial decays; `momentum_offsets` shifts them
            (see `effective_decays`), and likewise for the other two.
        rms_decays: exactly one.
        adafactor_decays: `Kf = Km` decays.
        epsilons: the floors.
        time_scales: in steps.
        rules: `"STANDARD"`, or `"ADAM_LIKE"` for μP step scales.
        factored_axes: what second moments were factored over in meta-training: a
            `"matrix"` of all fan-in by all fan-out axes, or the two largest axes of a
            `"tensor"`. They differ for attention kernels `(width, heads, head_dim)`,
            which are matrices in PyTorch, so that `"matrix"` is what happens here.
        largest_step: bound on `|d * exp(exp_mult * a)|`; None sets none.
    """

    hidden_size: int = 32
    hidden_layers: int = 2
    step_mult: float = 0.001
    exp_mult: float = 0.001
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    rms_decays: tuple[float, ...] = (0.999,)
    adafactor_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    momentum_offsets: tuple[float, ...] = (0.0, 0.0, 0.0)
    rms_offsets: tuple[float, ...] = (0.0,)
    adafactor_offsets: tuple[float, ...] = (0.0, 0.0, 0.0)
    epsilons: Epsilons = Epsilons()
    time_scales: tuple[float, ...] = TIME_SCALES
    rules: str = "STANDARD"
    factored_axes: str = "matrix"
    largest_step: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("hidden_size", 10**6), ("hidden_layers", 1000)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(
                    f"{name} must be in [1, {most}], is {getattr(self, name)}"
                )
        if not 0.0 < self.step_mult <= 1e3:
            raise ValueError(f"step_mult must be in (0, 1000], is {self.step_mult}")
        if not -1e3 <= self.exp_mult <= 1e3:
            raise ValueError(f"exp_mult must be in [-1000, 1000], is {self.exp_mult}")
        bound = self.largest_step
        if bound is not None and not 0.0 < bound <= 1e38:
            raise ValueError(f"largest_step must be in (0, 1e38], is {bound}")
        for kind in ("momentum", "rms", "adafactor"):
            self._check_decays(kind)
        if len(self.rms_decays) != 1:
            raise ValueError(f"rms_decays must be one decay, are {self.rms_decays}")
        if len(self.momentum_decays) != len(self.adafactor_decays):
            raise ValueError(
                "momentum_decays and adafactor_decays are multiplied pairwise, but are "
                f"{self.momentum_decays} and {self.adafactor_decays}"
            )
        if not all(math.isfinite(s) and s > 0 for s in self.time_scales):
            raise ValueError(f"time_scales must be > 0, are {self.time_scales}")
        if self.rules not in RULES:
            raise ValueError(f"rules must be one of {RULES}, is {self.rules!r}")
        if self.factored_axes not in FACTORED_AXES:
            raise ValueError(
                f"factored_axes must be one of {FACTORED_AXES}, is "
                f"{self.factored_axes!r}"
            )

    def _check_decays(self, kind: str) -> None:
        decays, offsets = (
            getattr(self, f"{kind}_decays"),
            getattr(self, f"{kind}_offsets"),
        )
        if not 1 <= len(decays) <= MOST_DECAYS:
            raise ValueError(
                f"{kind}_decays must be 1 to {MOST_DECAYS}, are {len(decays)}"
            )
        if not all(0.0 <= d < 1.0 for d in decays):
            raise ValueError(f"{kind}_decays must be in [0, 1), are {decays}")
        finite = all(abs(offset) <= LARGEST for offset in offsets)
        if len(offsets) != len(decays) or not finite:
            raise ValueError(
                f"{kind}_offsets must be {len(decays)} finite numbers of float32, are "
                f"{offsets}"
            )

    @property
    def momentum_betas(self) -> tuple[float, ...]:
        """Effective momentum decays, `Km` of them."""
        return effective_decays(self.momentum_decays, self.momentum_offsets)

    @property
    def rms_betas(self) -> tuple[float, ...]:
        """Effective second-moment decay, as a tuple of one."""
        return effective_decays(self.rms_decays, self.rms_offsets)

    @property
    def adafactor_betas(self) -> tuple[float, ...]:
        """Effective decays of the factored second moments, `Kf` of them."""
        return effective_decays(self.adafactor_decays, self.adafactor_offsets)

    @property
    def groups(self) -> dict[str, slice]:
        """Slices of the groups of features among the inputs of the network."""
        m, r, f = (
            len(self.momentum_decays),
            len(self.rms_decays),
            len(self.adafactor_decays),
        )
        sizes = {
            "gradient": 1,
            "parameter": 1,
            "momentum": m,
            "second_moment": r,
            "normalized_momentum": m,
            "reciprocal_root": r,
            "factored_gradient": f,
            "row": f,
            "column": f,
            "reciprocal_root_row": f,
            "reciprocal_root_column": f,
            "factored_momentum": f,
            "time": len(self.time_scales),
        }
        ends = [sum(list(sizes.values())[: i + 1]) for i in range(len(sizes))]
        return {
            name: slice(end - size, end)
            for (name, size), end in zip(sizes.items(), ends, strict=True)
        }

    @property
    def input_size(self) -> int:
        """Number of inputs of the network, 39 with three decays."""
        return self.groups["time"].stop

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Name of every input of the network, in order."""
        names: list[str] = []
        for group, place in self.groups.items():
            if group in ("gradient", "parameter"):
                names.append(group)
            elif group == "time":
                names += [f"time_{_plain(scale)}" for scale in self.time_scales]
            else:
                names += [f"{group}_{k}" for k in range(place.stop - place.start)]
        return tuple(names)

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the network, matrices as (out, in)."""
        h = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        layers = [("input", h, self.input_size)]
        layers += [(f"linear_{i}", h, h) for i in range(self.hidden_layers - 1)]
        for name, out, into in [*layers, ("output", 2, h)]:
            shapes[f"network.{name}.weight"] = (out, into)
            shapes[f"network.{name}.bias"] = (out,)
        return shapes


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
