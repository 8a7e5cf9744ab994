"""What is known of a parameter beside its value: axes, shape, base shape.

A `ParamSpec` tree lies beside the parameters, never inside an optimizer's state. It is
static, costs nothing at run time, and is deliberately not a pytree node: JAX sees it as
a leaf, so `jax.tree.map(f, params, specs)` works and a missing or an extra parameter
fails by structure.

A linen module annotates each parameter with `named(initializer, "in -> out")`;
`param_specs` reads the annotations of a model and of its base-width twin by two
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
"""Fixed names whose size may be another in the base model."""
Initializer = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Static description of one parameter.

    Attributes:
        axes: names of the axes, in canonical order.
        shape: shape of the array.
        base_shape: shape of the same parameter in the base model, at which every μP
            multiplier is 1.
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
        """Number of inputs that each output sums over; 1 where nothing is summed."""
        start = len(self.axes.stacked)
        return math.prod(
            1 if name in LOOKUP_NAMES else self.shape[start + i]
            for i, name in enumerate(self.axes.fan_in)
        )

    @property
    def fan_out(self) -> int:
        """Number of outputs; 1 where there is no such axis."""
        return math.prod(self.shape[len(self.axes.stacked) + len(self.axes.fan_in) :])

    @property
    def fan_in_mult(self) -> float:
        """Ratio of the fan-in to its base size; 1 if no axis of it scales."""
        start = len(self.axes.stacked)
        return self._ratio(start, start + len(self.axes.fan_in))

    @property
    def fan_out_mult(self) -> float:
        """Ratio of the fan-out to its base size; 1 if no axis of it scales."""
        start = len(self.axes.stacked) + len(self.axes.fan_in)
        return self._ratio(start, len(self.shape))

    def _ratio(self, start: int, stop: int) -> float:
        if not SCALING_NAMES.intersection(self.axes.names[start:stop]):
            return 1.0
        # The whole side counts: heads may be as many and each of them larger.
        base_size = math.prod(self.base_shape[start:stop])
        return math.prod(self.shape[start:stop]) / base_size if base_size else 1.0


@jax.tree_util.register_pytree_node_class
class Named(meta.AxisMetadata[Any]):
    """A boxed parameter that carries its role through `flax.linen`."""

    def __init__(self, value: Any, axes: Axes, depth_mult: float = 1.0) -> None:
        self.value = value
        self.axes = axes
        self.depth_mult = depth_mult

    def unbox(self) -> Any:
        """The bare array."""
        return self.value

    def replace_boxed(self, val: Any) -> Named:
        """The same role around another value."""
        return Named(val, self.axes, self.depth_mult)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Named:
        """Called by `nn.scan` and `nn.vmap` when they stack the parameter."""
        name = params.get(meta.PARTITION_NAME) or "layers"
        return Named(self.value, self.axes.stack(index, name), self.depth_mult)

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Named:
        """Called by `nn.scan` and `nn.vmap` when they take one slice."""
        del params
        return Named(self.value, self.axes.unstack(index), self.depth_mult)

    def tree_flatten(self) -> tuple[tuple[Any], tuple[Axes, float]]:
        """Pytree protocol: the value is the child, the role is static."""
        return (self.value,), (self.axes, self.depth_mult)

    @classmethod
    def tree_unflatten(cls, role: tuple[Axes, float], children: tuple[Any]) -> Named:
        """Pytree protocol."""
        return cls(children[0], *role)


def named(
    initializer: Initializer, axes: str, depth_mult: float = 1.0
) -> Callable[..., Named]:
    """Annotates a parameter where it is born.

    Args:
        initializer: called as `initializer(key, shape, dtype)`.
        axes: names such as `"width -> heads head_dim"` (see `Axes.parse`).
        depth_mult: of the residual block that the parameter is in (see `ParamSpec`).

    Returns:
        An initializer for `flax.linen.Module.param` that yields a `Named` box.
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
        lambda box: box.value if _is_box(box) else box,
        tree,
        is_leaf=_is_box,
    )


def param_specs(
    init: Callable[[jax.Array], Any], base_init: Callable[[jax.Array], Any]
) -> Any:
    """Reads the specs of a model from its annotations, without allocating.

    Args:
        init: `key -> boxed parameters` of the model.
        base_init: the same for the model at its base width.

    Returns:
        A tree of `ParamSpec` with the structure of the unboxed parameters.

    Raises:
        ValueError: if a parameter has no annotation, or the two models differ in
            structure or in a parameter's axes.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed, base = (jax.eval_shape(f, key) for f in (init, base_init))
    for tree in (boxed, base):
        _check_annotated(tree)
    if jax.tree.structure(unbox(boxed)) != jax.tree.structure(unbox(base)):
        raise ValueError(
            "the model and its base model have different parameters: "
            f"{jax.tree.structure(unbox(boxed))} and {jax.tree.structure(unbox(base))}"
        )

    def spec(path: Any, box: Named, base_box: Named) -> ParamSpec:
        if box.axes != base_box.axes:
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} has axes '{box.axes}', in "
                f"the base model '{base_box.axes}'"
            )
        found = ParamSpec(
            box.axes, box.value.shape, base_box.value.shape, box.depth_mult
        )
        for axis, size, base_size in zip(
            box.axes.names, found.shape, found.base_shape, strict=True
        ):
            if size != base_size and axis not in SCALING_NAMES | _MAY_DIFFER:
                raise ValueError(
                    f"parameter {jax.tree_util.keystr(path)} with axes '{box.axes}': "
                    f"axis {axis!r} is fixed, but is {size} here and {base_size} in "
                    "the base model; an axis that grows needs a scaling name such as "
                    "'width'"
                )
        return found

    return jax.tree_util.tree_map_with_path(spec, boxed, base, is_leaf=_is_box)


def _check_annotated(boxed: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box)
    for path, leaf in leaves:
        if not isinstance(leaf, Named):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} of shape {leaf.shape} has no "
                "role: declare it with named(initializer, 'fan-in -> fan-out')"
            )


def infer_specs(
    params: Any, base_params: Any, kinds: Mapping[str, Kind] | None = None
) -> Any:
    """Guesses specs of plain parameters from two trees of arrays or shapes.

    The last axis is taken as fan-out and those before it as fan-in; an axis whose size
    differs from the base is scaling. **Limits**: where nothing differs (at the base
    width) the kind cannot be seen; give it in `kinds`. Fan-out of several axes
    (attention heads) is beyond it, with `kinds` too: annotate such a model with
    `named`.

    Args:
        params: tree of anything with a `.shape`.
        base_params: the same tree at the base width.
        kinds: maps a parameter's path (`jax.tree_util.keystr(path)`) to its kind.

    Raises:
        ValueError: on differing structures or ranks, a name in `kinds` that no
            parameter has, or a kind that a parameter's rank cannot have.
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
    if kind is not None:  # what is said wins over what the sizes suggest
        if kind in ("input", "fixed"):
            names[:-1] = ["fixed"] * (len(shape) - 1)
        else:
            names[-2] = "width"
        names[-1] = "width" if kind in ("hidden", "input") else "fixed"
    return Axes(fan_in=tuple(names[:-1]), fan_out=(names[-1],))
