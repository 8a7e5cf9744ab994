"""Static descriptions of parameters: axes, shape and base shape.

A tree of `ParamSpec` lies beside the parameters, never inside an optimizer's state. A
spec is deliberately a leaf, not a pytree node: `jax.tree.map(f, params, specs)` works,
and a missing or extra parameter fails by structure.

A linen module annotates each parameter with `named(initializer, "in -> out")`;
`param_specs` reads the annotations of a model and of its base model by two
`eval_shape`s, without allocating anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax.core import meta

from parametrization.axes import LOOKUP_NAMES, SCALING_NAMES, Axes, Kind

Shape = tuple[int, ...]
_MAY_DIFFER = frozenset({"head_dim", "layers"})
"""Fixed names whose size may differ in the base model."""
Initializer = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Static description of one parameter.

    Attributes:
        axes: names of the axes, in canonical order.
        shape: shape of the array.
        base_shape: shape in the base model, where every μP multiplier is 1.
        depth_mult: number of residual blocks over that of the base model, for a
            parameter inside a block; 1 outside.
    """

    axes: Axes
    shape: Shape
    base_shape: Shape
    depth_mult: float = 1.0

    def __post_init__(self) -> None:
        rank = len(self.axes.names)
        if len(self.shape) != rank or len(self.base_shape) != rank:
            raise ValueError(
                f"axes '{self.axes}' name {rank} dimensions, but the shape is "
                f"{self.shape} and the base shape {self.base_shape}"
            )
        if any(size < 0 for size in (*self.shape, *self.base_shape)):
            raise ValueError(
                f"shapes {self.shape} and {self.base_shape} have sizes < 0"
            )
        if not 0 < self.depth_mult < math.inf:
            raise ValueError(f"depth_mult = {self.depth_mult} must be positive")

    @property
    def kind(self) -> Kind:
        """Role of the parameter (see `Axes.kind`)."""
        return self.axes.kind

    @property
    def fan_in(self) -> int:
        """Number of terms that each output sums over."""
        sizes = zip(
            self.axes.fan_in, self.shape[len(self.axes.stacked) :], strict=False
        )
        return math.prod(size for name, size in sizes if name not in LOOKUP_NAMES)

    @property
    def fan_out(self) -> int:
        """Number of outputs."""
        return math.prod(self.shape[len(self.axes.stacked) + len(self.axes.fan_in) :])

    @property
    def fan_in_mult(self) -> float:
        """Ratio of fan-in to its base size; 1 unless one of its axes scales."""
        start = len(self.axes.stacked)
        return self._ratio(start, start + len(self.axes.fan_in))

    @property
    def fan_out_mult(self) -> float:
        """Ratio of fan-out to its base size; 1 unless one of its axes scales."""
        start = len(self.axes.stacked) + len(self.axes.fan_in)
        return self._ratio(start, len(self.shape))

    def _ratio(self, start: int, stop: int) -> float:
        if not SCALING_NAMES.intersection(self.axes.names[start:stop]):
            return 1.0
        # The whole side, fixed axes too: head_dim may differ with as many heads.
        base_size = math.prod(self.base_shape[start:stop])
        return math.prod(self.shape[start:stop]) / base_size if base_size else 1.0


@jax.tree_util.register_pytree_node_class
class Named(meta.AxisMetadata[Any]):
    """A box that carries a parameter's role through `flax.linen`."""

    def __init__(self, value: Any, axes: Axes, depth_mult: float = 1.0) -> None:
        self.value = value
        self.axes = axes
        self.depth_mult = depth_mult

    def unbox(self) -> Any:
        """The bare array."""
        return self.value

    def replace_boxed(self, val: Any) -> Named:
        """Returns a box of the same role around another value."""
        return Named(val, self.axes, self.depth_mult)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Named:
        """Adds a stacked axis, for `nn.scan` and `nn.vmap`."""
        name = params.get(meta.PARTITION_NAME) or "layers"
        return Named(self.value, self.axes.stack(index, name), self.depth_mult)

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Named:
        """Removes a stacked axis, for `nn.scan` and `nn.vmap`."""
        del params
        return Named(self.value, self.axes.unstack(index), self.depth_mult)

    def tree_flatten(self) -> tuple[tuple[Any], tuple[Axes, float]]:
        """Splits into the value, a child, and the static role."""
        return (self.value,), (self.axes, self.depth_mult)

    @classmethod
    def tree_unflatten(cls, role: tuple[Axes, float], children: tuple[Any]) -> Named:
        """Inverts `tree_flatten`."""
        return cls(children[0], *role)


def named(
    initializer: Initializer, axes: str, depth_mult: float = 1.0
) -> Callable[..., Named]:
    """Returns an initializer for `flax.linen.Module.param` that makes a `Named` box.

    Args:
        initializer: called as `initializer(key, shape, dtype)`.
        axes: names such as `"width -> heads head_dim"` (see `Axes.parse`).
        depth_mult: see `ParamSpec`.
    """
    parsed = Axes.parse(axes)

    def init(key: jax.Array, shape: Shape, *args: Any, **kwargs: Any) -> Named:
        if len(shape) != len(parsed.names):
            raise ValueError(
                f"axes '{parsed}' name {len(parsed.names)} dimensions, but the "
                f"parameter has shape {tuple(shape)}"
            )
        return Named(initializer(key, shape, *args, **kwargs), parsed, depth_mult)

    return init


def _is_box(node: Any) -> bool:
    return isinstance(node, Named)


def unbox(tree: Any) -> Any:
    """Takes the arrays out of their `Named` boxes."""
    return jax.tree.map(
        lambda box: box.value if _is_box(box) else box, tree, is_leaf=_is_box
    )


def param_specs(
    init: Callable[[jax.Array], Any], base_init: Callable[[jax.Array], Any]
) -> Any:
    """Reads the specs of a model from its annotations, without allocating.

    Args:
        init: `key -> boxed parameters` of the model.
        base_init: the same for its base model.

    Returns:
        A tree of `ParamSpec` with the structure of the unboxed parameters.

    Raises:
        ValueError: if a parameter has no annotation, or the two models differ in
            structure or in a parameter's axes.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed, base = (jax.eval_shape(f, key) for f in (init, base_init))
    structures = [_annotated_structure(tree) for tree in (boxed, base)]
    if structures[0] != structures[1]:
        raise ValueError(
            "the model and its base model have different parameters: "
            f"{structures[0]} and {structures[1]}"
        )
    return jax.tree_util.tree_map_with_path(_spec, boxed, base, is_leaf=_is_box)


def _spec(path: Any, box: Named, base_box: Named) -> ParamSpec:
    name = jax.tree_util.keystr(path)
    if box.axes != base_box.axes:
        raise ValueError(
            f"parameter {name} has axes '{box.axes}', in the base model "
            f"'{base_box.axes}'"
        )
    spec = ParamSpec(box.axes, box.value.shape, base_box.value.shape, box.depth_mult)
    for axis, size, base_size in zip(
        spec.axes.names, spec.shape, spec.base_shape, strict=True
    ):
        if size != base_size and axis not in SCALING_NAMES | _MAY_DIFFER:
            raise ValueError(
                f"parameter {name} with axes '{box.axes}': axis {axis!r} is fixed, but "
                f"is {size} here and {base_size} in the base model; an axis that grows "
                "needs a scaling name such as 'width'"
            )
    return spec


def _annotated_structure(boxed: Any) -> Any:
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box):
        if not isinstance(leaf, Named):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} of shape {leaf.shape} has no "
                "role: declare it with named(initializer, 'fan-in -> fan-out')"
            )
    return jax.tree.structure(unbox(boxed))


def infer_specs(
    params: Any, base_params: Any, kinds: Mapping[str, Kind] | None = None
) -> Any:
    """Guesses specs of plain parameters from two trees of arrays or shapes.

    The last axis is taken as fan-out and those before it as fan-in; axes whose sizes
    differ from the base are scaling. **Limits**: at the base width nothing differs, so
    `kinds` are needed. A fan-out of several axes cannot be expressed: use `named`.

    Args:
        params: tree of anything with a `.shape`.
        base_params: the same tree at the base width.
        kinds: maps a parameter's path (`jax.tree_util.keystr(path)`) to its kind.

    Raises:
        ValueError: if structures or ranks differ, or `kinds` names an unknown
            parameter or does not fit its rank.
    """
    if jax.tree.structure(params) != jax.tree.structure(base_params):
        raise ValueError("params and base_params differ in structure")
    kinds = dict(kinds or {})

    def spec(path: Any, leaf: Any, base: Any) -> ParamSpec:
        name = jax.tree_util.keystr(path)
        shape, base_shape = tuple(leaf.shape), tuple(base.shape)
        if len(shape) != len(base_shape):
            raise ValueError(
                f"parameter {name} has shape {shape}, in the base model {base_shape}"
            )
        kind = kinds.pop(name, None)
        axes = _axes_of_kind(kind, shape, base_shape)
        if kind is not None and axes.kind != kind:
            raise ValueError(
                f"kind {kind!r} of parameter {name} does not fit its shape {shape}"
            )
        return ParamSpec(axes, shape, base_shape)

    specs = jax.tree_util.tree_map_with_path(spec, params, base_params)
    if kinds:
        raise ValueError(f"kinds name parameters that do not exist: {sorted(kinds)}")
    return specs


def _axes_of_kind(kind: Kind | None, shape: Shape, base_shape: Shape) -> Axes:
    names = [
        "width" if size != base else "fixed"
        for size, base in zip(shape, base_shape, strict=True)
    ]
    if len(shape) < 2 or kind in ("vector", "scalar"):
        return Axes(fan_in=(), fan_out=tuple(names))
    # A given kind overrides what the sizes suggest.
    if kind is not None:
        if kind in ("input", "fixed"):
            names[:-1] = ["fixed"] * (len(shape) - 1)
        else:
            names[-2] = "width"
        names[-1] = "width" if kind in ("hidden", "input") else "fixed"
    return Axes(fan_in=tuple(names[:-1]), fan_out=(names[-1],))
