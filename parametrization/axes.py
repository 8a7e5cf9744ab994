"""Axis names of a parameter, and which of them are contracted.

A parameter is annotated once, where it is born, with a string such as
`"width -> heads head_dim"`. The arrow states the contraction: what stands left of it
is fan-in, what stands right of it is fan-out. Names also say which axes grow when a
network is made wider (*scaling* names) and which do not (*fixed* names), so a
parameter's role is known at the base width too, where no dimension differs.

Stacked axes (layers of a scanned block) stand first, in brackets:
`"[layers] width -> width"`; they belong to neither side.

A fan-in that is *looked up* (a row of an embedding, not a sum over the vocabulary) has
a name of its own too: one term reaches each output, whatever the size of the axis.
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
        "fixed",
    }
)
LOOKUP_NAMES = frozenset({"vocab", "positions"})
"""Fixed names whose axis, on the fan-in side, is indexed rather than summed over."""


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
            ValueError: if the arrow is missing or repeated, a bracket stands elsewhere
                than first, or a name is unknown.
        """
        left, arrow, right = text.partition("->")
        if not arrow or "->" in right:
            raise ValueError(f"axes {text!r} must have one arrow, as 'width -> width'")
        stacked: list[str] = []
        rest = left.strip()
        if rest.startswith("["):
            inner, bracket, rest = rest[1:].partition("]")
            if not bracket:
                raise ValueError(f"axes {text!r}: a '[' is not closed")
            stacked = inner.split()
        if set("[]") & set(rest + right):
            raise ValueError(f"axes {text!r}: stacked axes stand once, before fan-in")
        return cls(tuple(rest.split()), tuple(right.split()), tuple(stacked))

    @property
    def names(self) -> tuple[str, ...]:
        """All names in canonical order, one per axis of the array."""
        return self.stacked + self.fan_in + self.fan_out

    @property
    def kind(self) -> Kind:
        """Role of the parameter, from names alone, so it holds at the base width.

        A matrix is hidden, input or output by the sides on which a scaling axis
        stands; without one it is fixed. What contracts nothing is a vector or a scalar.
        """
        if not self.fan_in:
            return "vector" if self.fan_out else "scalar"
        grows_in = any(name in SCALING_NAMES for name in self.fan_in)
        grows_out = any(name in SCALING_NAMES for name in self.fan_out)
        if grows_in:
            return "hidden" if grows_out else "output"
        return "input" if grows_out else "fixed"

    def stack(self, index: int, name: str) -> Axes:
        """Axes of the same parameter stacked along a new axis at `index`."""
        if index > len(self.stacked):
            raise ValueError(
                f"stacked axes come before fan-in and fan-out: cannot insert {name!r} "
                f"at {index} in {str(self)!r}"
            )
        stacked = (*self.stacked[:index], name, *self.stacked[index:])
        return dataclasses.replace(self, stacked=stacked)

    def unstack(self, index: int) -> Axes:
        """Axes of one slice along stacked axis `index`."""
        stacked = self.stacked[:index] + self.stacked[index + 1 :]
        return dataclasses.replace(self, stacked=stacked)

    def __str__(self) -> str:
        stacked = f"[{' '.join(self.stacked)}] " if self.stacked else ""
        return f"{stacked}{' '.join(self.fan_in)} -> {' '.join(self.fan_out)}".strip()
