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
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from flax.core import meta

from parametrization.axes import LOOKUP_NAMES, SCALING_NAMES, Axes, Kind

Shape = tuple[int, ...]
Readout = Literal["multiplier", "step"]
READOUTS: tuple[Readout, ...] = ("multiplier", "step")
_MAY_DIFFER = frozenset({"head_dim", "layers"})
"""Fixed names whose size may differ in the base model."""
Initializer = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Static description of one parameter.

    Attributes:
        axes: names of the axes, in canonical order.
        shape: shape of the array, its axes in canonical order.
        base_shape: shape in the base model, where every μP multiplier is 1.
        depth_mult: number of residual blocks over that of the base model, for a
            parameter inside a block; 1 outside.
        readout: for kind `"output"`, what the width changes: the model's forward pass
            has the output multiplier, or it has none and the step shrinks instead.
        order: the array's axis for each canonical axis; None if they are in order.
        guessed: whether the role was guessed from shapes.
    """

    axes: Axes
    shape: Shape
    base_shape: Shape
    depth_mult: float = 1.0
    readout: Readout = "multiplier"
    order: tuple[int, ...] | None = None
    guessed: bool = dataclasses.field(default=False, compare=False)

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
        if self.readout not in READOUTS:
            raise ValueError(f"readout = {self.readout!r} must be one of {READOUTS}")
        if self.order is not None and sorted(self.order) != list(range(rank)):
            raise ValueError(f"order = {self.order} must permute {rank} axes")

    @property
    def array_shape(self) -> Shape:
        """Shape of the array as it is."""
        if self.order is None:
            return tuple(self.shape)
        return tuple(self.shape[i] for i in np.argsort(self.order))

    def canonical(self, array: jax.Array) -> jax.Array:
        """Brings an array's axes into canonical order."""
        return array if self.order is None else array.transpose(self.order)

    def as_given(self, array: jax.Array) -> jax.Array:
        """Inverts `canonical`."""
        if self.order is None:
            return array
        return array.transpose(tuple(int(i) for i in np.argsort(self.order)))

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
    check_fixed_axes(name, spec)
    return spec


def check_fixed_axes(name: str, spec: ParamSpec) -> None:
    """Raises ValueError if an axis that does not scale differs from the base model."""
    for axis, size, base_size in zip(
        spec.axes.names, spec.shape, spec.base_shape, strict=True
    ):
        if size != base_size and axis not in SCALING_NAMES | _MAY_DIFFER:
            raise ValueError(
                f"parameter {name} with axes '{spec.axes}': axis {axis!r} is fixed, "
                f"but is {size} here and {base_size} in the base model; an axis that "
                "grows needs a scaling name such as 'width'"
            )


def _annotated_structure(boxed: Any) -> Any:
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box):
        if not isinstance(leaf, Named):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} of shape {leaf.shape} has no "
                "role: declare it with named(initializer, 'fan-in -> fan-out')"
            )
    return jax.tree.structure(unbox(boxed))
