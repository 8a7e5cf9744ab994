"""Where arrays lie: accumulators beside their parameters, updates under any mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Names = tuple[str, ...]
"""Axes of a mesh over which one axis of an array is split."""

Groups = list[tuple[int, ...]]
"""Axes of a reshaped array as groups of those of the array."""


@dataclasses.dataclass(frozen=True)
class Blank:
    """A tensor as a rule sees it, without values: what its accumulators are made like.

    They lie where the parameter lies, each axis split as the parameter's is, and under
    `shard_map` they differ between devices if it does.
    """

    like: Any
    """The parameter, of any shape."""
    shape: tuple[int, ...]
    """Shape of one tensor, `S`."""
    dtype: Any
    """Dtype of accumulators."""
    names: tuple[Names, ...]
    """For each axis of `S`, the axes of the mesh that split it."""
    stacked: tuple[int, ...] = ()
    """Axes in front of a stack of such tensors."""
    stacked_names: tuple[Names, ...] = ()
    """As `names`, of the stack."""

    def zeros(self, *lead: int, without: int | None = None) -> jax.Array:
        """Returns zeros `[*stacked, *lead, *S]`; of `S` an axis may be left out."""
        kept = [i for i in range(len(self.shape)) if i != without]
        shape = (*self.stacked, *lead, *(self.shape[i] for i in kept))
        names = (
            *self.stacked_names,
            *((),) * len(lead),
            *(self.names[i] for i in kept),
        )
        return zeros_like(self.like, shape, self.dtype, names)


def blank(shape: tuple[int, ...], dtype: Any) -> Blank:
    """Returns a tensor that lies where JAX puts new arrays."""
    return Blank(jnp.zeros([], dtype), shape, dtype, ((),) * len(shape))


def axis_names(param: Any, order: Sequence[int] | None = None) -> tuple[Names, ...]:
    """Returns for each axis, in another order if one is given, what splits it."""
    sharding, rank = _sharding(param), jnp.ndim(param)
    found = list(sharding.spec) if isinstance(sharding, NamedSharding) else []
    found = [x if isinstance(x, str | tuple) else () for x in found]
    names = [(x,) if isinstance(x, str) else x for x in found]
    names += [()] * (rank - len(names))
    return tuple(names if order is None else (names[i] for i in order))


def merged(names: tuple[Names, ...], groups: Groups) -> tuple[Names, ...]:
    """Returns the names of axes that are merged from groups of axes."""
    return tuple(sum((names[i] for i in group), ()) for group in groups)


def zeros_like(
    param: Any, shape: tuple[int, ...], dtype: Any, names: tuple[Names, ...]
) -> jax.Array:
    """Returns zeros on the devices of a parameter, split by the named axes."""
    sharding = _sharding(param)
    if isinstance(sharding, NamedSharding):
        spec = PartitionSpec(*(x or None for x in names))
        kind = sharding.memory_kind
        sharding = NamedSharding(sharding.mesh, spec, memory_kind=kind)
    elif not getattr(param, "committed", False) or len(sharding.device_set) > 1:
        sharding = None
    return jnp.zeros_like(param, dtype, shape, device=sharding)


def vary(tree: Any, *others: Any) -> Any:
    """Lets arrays differ between the devices of a `shard_map` as others do.

    A loop's carry must, if what is added to it does; values stay as they are.
    """
    differing = [x for x in jax.tree.leaves(others) if _has(AxisType.Manual, x)]
    if not differing:
        return tree
    zero = sum((jnp.zeros_like(x, jnp.int8, ()) for x in differing), jnp.int8(0))
    return jax.tree.map(lambda x: x + zero.astype(jnp.result_type(x)), tree)


def under_any_mesh(as_optax: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates `as_optax`: updates may run where types of arrays hold a sharding.

    Under a mesh with explicit axes JAX refuses products and reshapes that leave the
    sharding of their result open. There XLA chooses within the update; steps are split
    as parameters are, states as they were.
    """

    @functools.wraps(as_optax)
    def placed(self: Any, theta: Any, specs: Any, num_steps: Any, **rest: Any) -> Any:
        optimizer = optax.with_extra_args_support(
            as_optax(self, theta, specs, num_steps, **rest)
        )

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            leaves = jax.tree.leaves((updates, state, params))
            if not any(_has(AxisType.Explicit, x) for x in leaves):
                return optimizer.update(updates, state, params, **extra)

            def inside(theta: Any, num_steps: Any, extra: Any, *args: Any) -> Any:
                inner = as_optax(self, theta, specs, num_steps, **rest)
                inner = optax.with_extra_args_support(inner)
                return inner.update(*args, **extra)

            like = updates if params is None else params
            types = [jax.typeof(x).sharding for x in leaves]
            mesh = next(x.mesh for x in types if AxisType.Explicit in x.mesh.axis_types)
            where = jax.tree.map(
                lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec),
                (like, state),
            )
            auto = jax.sharding.auto_axes(inside, out_sharding=where)
            arguments = theta, num_steps, extra, updates, state, params
            return auto(*arguments)  # pyright: ignore[reportCallIssue]

        return optax.GradientTransformationExtraArgs(optimizer.init, update)  # pyright: ignore

    return placed


def _has(kind: AxisType, x: Any) -> bool:
    return kind in jax.typeof(x).sharding.mesh.axis_types


def _sharding(param: Any) -> Any:
    # A traced parameter has a type and no place.
    return getattr(param, "sharding", None) or jax.typeof(param).sharding
