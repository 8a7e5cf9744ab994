"""Names of a parameter's axes, and which of them are contracted.

A parameter is annotated where it is created, with a string such as
`"width -> heads head_dim"`: axes left of the arrow are fan-in, axes right of it are
fan-out. *Scaling* names mark axes that grow when the network is made wider, *fixed*
names those that do not, so the role of a parameter is known even at the base width,
where no dimension differs.

Stacked axes, such as the layers of a scanned block, come first, in brackets:
`"[layers] width -> width"`. They belong to neither side.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Kind = Literal["input", "hidden", "output", "vector", "scalar", "fixed"]
KINDS: tuple[Kind, ...] = ("input", "hidden", "output", "vector", "scalar", "fixed")

SCALING_NAMES = frozenset({"width", "heads", "mlp", "channels", "latent"})
FIXED_NAMES = frozenset(
    {
        "pixels",
        "classes",
        "vocab",
        "positions",
        "head_dim",
        "kernel",
        "image_channels",
        "patch",
        "code",
        "gates",
        "inputs",
        "outputs",
        "layers",
        "experts",
        "rank",
        "fixed",
    }
)
LOOKUP_NAMES = frozenset({"vocab", "positions"})
"""Fixed names whose axis, as fan-in, is indexed: one term reaches each output."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """Names of a parameter's axes in canonical order: stacked, fan-in, fan-out."""

    fan_in: tuple[str, ...]
    fan_out: tuple[str, ...]
    stacked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in SCALING_NAMES and name not in FIXED_NAMES:
                raise ValueError(
                    f"unknown axis name {name!r} in {str(self)!r}; scaling names: "
                    f"{sorted(SCALING_NAMES)}, fixed names: {sorted(FIXED_NAMES)}"
                )

    @classmethod
    def parse(cls, text: str) -> Axes:
        """Reads `"[stacked] fan_in -> fan_out"`.

        Raises:
            ValueError: if the arrow is missing or repeated, brackets are not first or
                not closed, or a name is unknown.
        """
        left, arrow, right = text.partition("->")
        if not arrow or "->" in right:
            raise ValueError(f"axes {text!r} must have one arrow, as 'width -> width'")
        stacked: list[str] = []
        rest = left.strip()
        if rest.startswith("["):
            inner, bracket, rest = rest[1:].partition("]")
            if not bracket:
                raise ValueError(f"axes {text!r}: '[' is not closed")
            stacked = inner.split()
        if set("[]") & set(rest + right):
            raise ValueError(f"axes {text!r}: stacked axes come once, before fan-in")
        return cls(tuple(rest.split()), tuple(right.split()), tuple(stacked))

    @property
    def names(self) -> tuple[str, ...]:
        """All names in canonical order, one per axis."""
        return self.stacked + self.fan_in + self.fan_out

    @property
    def kind(self) -> Kind:
        """Role of the parameter: which of its sides have a scaling axis.

        Both sides: hidden; fan-in only: output; fan-out only: input; none: fixed.
        Without fan-in it is a vector, or a scalar.
        """
        if not self.fan_in:
            return "vector" if self.fan_out else "scalar"
        grows_in = not SCALING_NAMES.isdisjoint(self.fan_in)
        grows_out = not SCALING_NAMES.isdisjoint(self.fan_out)
        if grows_in:
            return "hidden" if grows_out else "output"
        return "input" if grows_out else "fixed"

    def stack(self, index: int, name: str) -> Axes:
        """Returns the axes with a new stacked axis at `index`."""
        if index > len(self.stacked):
            raise ValueError(
                f"stacked axes come before fan-in and fan-out: cannot insert {name!r} "
                f"at {index} in {str(self)!r}"
            )
        stacked = (*self.stacked[:index], name, *self.stacked[index:])
        return dataclasses.replace(self, stacked=stacked)

    def unstack(self, index: int) -> Axes:
        """Returns the axes of one slice along stacked axis `index`."""
        stacked = self.stacked[:index] + self.stacked[index + 1 :]
        return dataclasses.replace(self, stacked=stacked)

    def __str__(self) -> str:
        stacked = f"[{' '.join(self.stacked)}] " if self.stacked else ""
        return f"{stacked}{' '.join(self.fan_in)} -> {' '.join(self.fan_out)}".strip()
