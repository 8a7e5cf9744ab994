"""Specs of parameters without annotations: from shapes, and from roles told by path."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

import jax

from parametrization.axes import KINDS, Axes
from parametrization.paths import Names, leaves_by_name, names_of, written
from parametrization.rules import ADAM_LIKE, Rules
from parametrization.spec import READOUTS, ParamSpec, Readout, Shape, check_fixed_axes

Order = Literal["in out", "out in"]
ORDERS: tuple[Order, ...] = ("in out", "out in")
STACKED = "stacked"
ROLES = (*KINDS, "readout", "lookup", "position", "convolution")
"""Words for the role of a parameter, or of one slice along its stacked axes."""
_LEAST_RANK = {"vector": 1, "scalar": 0, "convolution": 3}


def infer_specs(
    params: Any,
    base_params: Any,
    kinds: Mapping[str, str] | None = None,
    readout: Readout | Mapping[str, Readout] = "multiplier",
    order: Order = "in out",
) -> Any:
    """Returns specs of plain parameters, from two trees of arrays or shapes.

    Where `kinds` say nothing, axes that differ from the base are scaling, the last axis
    is fan-out, those before it are fan-in; from four axes on, those before the last two
    are positions of a convolution if they equal the base. **Limits**: at the base width
    nothing differs, so `kinds` are needed. `specs_table` shows what was guessed.

    Args:
        params: tree of anything with a `.shape`.
        base_params: the same parameters at the base width; containers may differ.
        kinds: what parameters are, by path. A key is a pattern (`fnmatch`) for paths
            such as `layers/0/kernel`, or `jax.tree_util.keystr(path)`; the first key
            that matches counts. A value is one of

            * a kind: `"input"`, `"hidden"`, `"output"` or `"readout"`, `"vector"`,
              `"scalar"`, `"fixed"`;
            * `"lookup"` or `"position"`: a table `[rows, width]` that is indexed by
              tokens or by positions;
            * `"convolution"`: `[*positions, in, out]`;
            * `"stacked"`: layers or experts along the first axis, the role of a slice
              is inferred; `"stacked hidden"`: it is told; `"stacked stacked"`: twice;
            * axes as in `named`, such as `"width -> heads head_dim"`.
        readout: `"multiplier"`: the model multiplies the product of a tensor of kind
            `"output"` by base fan-in over fan-in; `"step"`: it does not, and the
            tensor's step shrinks instead. For all of them, or by pattern as in `kinds`
            (routers, adapters); `"multiplier"` where none matches.
        order: `"in out"`, or `"out in"` if matrices and convolutions are `[out, in,
            *positions]` (Equinox), behind stacked axes. Tables that are told, and axes
            that are written out, are taken as they are.

    Raises:
        ValueError: naming the parameter that only one tree has, is no array, differs in
            rank, or does not fit its kind; or the pattern that matches nothing.

    Warns:
        UserWarning: naming guesses that shapes cannot confirm: three axes or more, a
            square matrix that may be a lookup table; or that `readout` has no effect.
    """
    specs, doubtful = guess_specs(params, base_params, kinds, readout, order)
    if doubtful:
        more = f"; and {len(doubtful) - 4} more" if len(doubtful) > 4 else ""
        warnings.warn(
            f"infer_specs guesses: {'; '.join(doubtful[:4])}{more}. If that is wrong, "
            "give kinds={path: role}, with a role such as 'convolution', 'stacked', "
            "'lookup' or 'width -> heads head_dim'; specs_table(specs) shows all",
            stacklevel=2,
        )
    found = leaves_by_name(specs).values()
    if readout != "multiplier" and all(spec.kind != "output" for spec in found):
        warnings.warn(
            f"readout = {readout!r} has no effect, as no parameter is an 'output': at "
            "the base width roles must be told by kinds, and matrices stored as [out, "
            "in] need order='out in'",
            stacklevel=2,
        )
    return specs


def guess_specs(
    params: Any,
    base_params: Any,
    kinds: Mapping[str, str] | None = None,
    readout: Readout | Mapping[str, Readout] = "multiplier",
    order: Order = "in out",
) -> tuple[Any, list[str]]:
    """Returns the specs of `infer_specs`, and a description of each doubtful guess."""
    if order not in ORDERS:
        raise ValueError(f"order = {order!r} must be one of {ORDERS}")
    if not isinstance(kinds, Mapping | None):
        raise ValueError(
            f"kinds = {kinds!r} must map paths to roles, as {{'*': 'hidden'}}"
        )
    base = _same_leaves(params, base_params)
    told = _Patterns("kinds", kinds or {})
    readouts = _Patterns("readout", _by_pattern(readout))
    doubtful: list[str] = []

    def spec_of(path: Any, leaf: Any) -> ParamSpec:
        name, role = written(names_of(path)), told.of(path) or None
        spec = _spec(name, leaf.shape, base[names_of(path)].shape, role, order)
        if doubt := _doubt(spec, role):
            doubtful.append(f"{name} {spec.array_shape} is {doubt}")
        scaled = readouts.of(path) or "multiplier"
        return (
            dataclasses.replace(spec, readout=scaled) if spec.kind == "output" else spec
        )

    specs = jax.tree_util.tree_map_with_path(spec_of, params)
    told.check()
    if isinstance(readout, Mapping):
        readouts.check()
    return specs, doubtful


def specs_table(specs: Any, rules: Rules = ADAM_LIKE) -> str:
    """Returns a table of specs as text, one parameter a line.

    Args:
        specs: tree of `ParamSpec`.
        rules: parametrization whose step scale is shown.
    """
    head = ("parameter", "shape", "base shape", "axes", "role", "fan-in", "fan-out")
    rows: list[tuple[str, ...]] = [(*head, "step", "")]
    for names, spec in leaves_by_name(specs).items():
        role = f"{spec.kind}, {spec.readout}" if spec.kind == "output" else spec.kind
        scales = (spec.fan_in_mult, spec.fan_out_mult, rules.step_scale(spec))
        numbers = (f"×{scale:.4g}" for scale in scales)
        shapes = (f"{list(spec.shape)}", f"{list(spec.base_shape)}")
        source = "guessed" if spec.guessed else ""
        rows.append((written(names), *shapes, str(spec.axes), role, *numbers, source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


class _Patterns:
    """Values by pattern; remembers which patterns were the first to match."""

    def __init__(self, option: str, values: Mapping[str, str]) -> None:
        self._option, self._values = option, values
        self._used: set[str] = set()

    def of(self, path: Any) -> Any:
        name, key = written(names_of(path)), jax.tree_util.keystr(path)
        for pattern, value in self._values.items():
            if pattern == key or fnmatchcase(name, pattern):
                self._used.add(pattern)
                return value
        return None

    def check(self) -> None:
        if unused := sorted(self._values.keys() - self._used):
            raise ValueError(
                f"{self._option} name parameters that do not exist: {unused} match "
                "none, or none that an earlier pattern leaves"
            )


def _by_pattern(readout: Readout | Mapping[str, Readout]) -> Mapping[str, Readout]:
    if not isinstance(readout, Mapping):
        return _by_pattern({"*": readout})
    for value in readout.values():
        if value not in READOUTS:
            raise ValueError(f"readout = {value!r} must be one of {READOUTS}")
    return readout


def _same_leaves(params: Any, base_params: Any) -> dict[Names, Any]:
    """Returns the leaves of `base_params`; raises ValueError if the trees differ."""
    trees = {
        "params": leaves_by_name(params),
        "base_params": leaves_by_name(base_params),
    }
    for tree, leaves in trees.items():
        for names, leaf in leaves.items():
            if not hasattr(leaf, "shape"):
                raise ValueError(
                    f"parameter {written(names)} of {tree} is a {type(leaf).__name__}, "
                    "not an array: leave out what is not trained, as "
                    "equinox.filter(model, equinox.is_inexact_array) does"
                )
    here, there = trees.values()
    for tree, lacking in (
        ("base_params", here.keys() - there),
        ("params", there.keys() - here),
    ):
        if lacking:
            raise ValueError(
                f"params and base_params differ in structure: {tree} have no parameter "
                f"{written(min(lacking))}"
            )
    return there


def _spec(
    name: str, shape: Any, base_shape: Any, role: str | None, order: Order
) -> ParamSpec:
    shape, base_shape = tuple(shape), tuple(base_shape)
    if len(shape) != len(base_shape):
        raise ValueError(
            f"parameter {name} has shape {shape}, in the base model {base_shape}"
        )
    permutation = _permutation(role or "", len(shape), order)
    if permutation is not None:
        shape = tuple(shape[i] for i in permutation)
        base_shape = tuple(base_shape[i] for i in permutation)
    try:
        axes = _axes(role or "", shape, base_shape)
        guessed = role is None or set(role.split()) == {STACKED}
        spec = ParamSpec(axes, shape, base_shape, order=permutation, guessed=guessed)
    except ValueError as error:
        raise ValueError(f"kind {role!r} of parameter {name} {error}") from None
    if role is not None and role.split()[-1] not in KINDS:
        check_fixed_axes(name, spec)
    return spec


def _permutation(role: str, rank: int, order: Order) -> tuple[int, ...] | None:
    """Returns the array's axis for each canonical axis; None if they are in order."""
    words = role.split()
    lead = words.count(STACKED)
    if order == "in out" or rank - lead < 2 or "->" in role:
        return None
    if words and words[-1] in ("lookup", "position", "vector"):
        return None
    return (*range(lead), *range(lead + 2, rank), lead + 1, lead)


def _axes(role: str, shape: Shape, base_shape: Shape) -> Axes:
    if "->" in role:
        return Axes.parse(role)
    words = role.split()
    last = words.pop() if words and words[-1] != STACKED else ""
    if set(words) - {STACKED} or last not in (*ROLES, ""):
        raise ValueError(
            "must be axes, as 'width -> width', or "
            f"one of {ROLES}, with '{STACKED}' in front for each stacked axis"
        )
    sizes, base_sizes = shape[len(words) :], base_shape[len(words) :]
    if shape[: len(words)] != base_shape[: len(words)]:
        raise ValueError(
            f"does not fit its shapes {shape} and {base_shape}: a stacked axis is as "
            "long in the base model"
        )
    least = _LEAST_RANK.get(last, 2 if last else 0)
    if len(shape) < len(words) + least or (last == "scalar" and sizes):
        raise ValueError(f"does not fit its shape {shape}")
    if last == "position" and set(sizes[:-2]) - {1}:
        raise ValueError(
            f"does not fit its shape {shape}: a table of positions is [positions, "
            "width]; a kernel that slides over positions is a 'convolution'"
        )
    grows = [
        "width" if size != base else "fixed"
        for size, base in zip(sizes, base_sizes, strict=True)
    ]
    fan_in, fan_out = _sides(last, grows)
    return Axes(tuple(fan_in), tuple(fan_out), ("layers",) * len(words))


def _sides(role: str, grows: list[str]) -> tuple[list[str], list[str]]:
    """Names the fan-in and fan-out axes of a slice, given which of them grow."""
    before, last = grows[:-1], grows[-1:]
    if role in ("vector", "scalar") or len(grows) < 2:
        return [], grows
    if role == "":
        positions = before[:-1]
        if len(grows) >= 4 and "width" not in positions:
            role = "convolution"
    if role == "convolution":
        return ["kernel"] * len(before[:-1]) + before[-1:], last
    if role in ("lookup", "position"):
        name = "vocab" if role == "lookup" else "positions"
        return [name] * len(before), ["width"]
    if role in ("input", "fixed"):
        before = ["fixed"] * len(before)
    elif role:
        before = [*before[:-1], "width"]
    if role:
        last = ["width" if role in ("hidden", "input") else "fixed"]
    return before, last


def _doubt(spec: ParamSpec, role: str | None) -> str:
    """Describes a guess that shapes cannot confirm; empty if there is none."""
    lead = len(spec.axes.stacked)
    shape, base = spec.shape[lead:], spec.base_shape[lead:]
    square = len(shape) == 2 and shape[0] == shape[1]
    if spec.guessed and (len(shape) > 2 or (square and spec.kind == "input")):
        return f"'{spec.axes}'"
    if square and shape == base and role and role.split()[-1] in ("lookup", "position"):
        return f"'{spec.axes}', whose rows could be its columns"
    return ""
