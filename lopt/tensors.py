"""Transformations of a whole tree from an update rule for one tensor `[*S]`.

Tensors of one shape and dtype go through the rule together, stacked and vmapped: a
transformer of 84 tensors has ten shapes, so ten programs are compiled and not 84.
Stacking copies gradients, parameters and state, 33 ns of CPU time per parameter and
step beside the 41 of CELO2-base itself (512×512 on 2 cores), so large tensors go
through alone. State lies parallel to the parameters and is stacked only in an update.

A parameter that `nn.scan` stacks over layers counts as that many tensors, so a scanned
model trains as the same model without scan. Scalars are lifted to `[1]`. Masked and
empty tensors are left alone.

A rule with factored second moments sees a tensor in one of two shapes, by its field
`factored_axes`. As a "matrix" of all fan-in by all fan-out axes, an attention kernel
`width -> heads head_dim` is `[width, heads·head_dim]`, the one matrix that it is in
PyTorch; positions of a convolution stay axes of their own. As a "tensor" it keeps its
axes, and the two largest of them, whatever their roles, are factored.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopt import checks
from lopt.base import Specs, bare, flatten_with_specs, is_masked, map_with_specs
from lopt.placement import Blank, Groups, axis_names, merged
from parametrization.axes import Axes
from parametrization.spec import ParamSpec

FactoredAxes = Literal["tensor", "matrix"]

POSITION = "kernel"
"""Name of the axes over which a convolution slides."""

ALONE_FROM = 2**17
"""Elements from which a tensor is not stacked with others."""


@dataclasses.dataclass(frozen=True)
class Alike:
    """A group of `n` tensors of one shape and dtype."""

    shape: tuple[int, ...]
    """Shape of one tensor, `S`."""
    dtype: Any
    """Dtype of the computation, at least float32."""
    leaves: tuple[int, ...]
    """Indices of their leaves in the tree."""
    counts: tuple[int, ...]
    """Number of tensors stacked in each of these leaves."""

    @property
    def size(self) -> int:
        """Number of tensors, `n`."""
        return sum(self.counts)


class Arrangement:
    """Groups of like tensors of a tree, numbered group by group; static."""

    def __init__(
        self,
        tree: Any,
        params: Any,
        specs: Specs,
        factored_axes: FactoredAxes = "tensor",
    ) -> None:
        """Groups the leaves of `params` that `tree` (gradients) does not mask.

        Raises:
            ValueError: if a spec does not fit its parameter.
        """
        self._leaves, self._structure, found = flatten_with_specs(tree, specs)
        values = self._structure.flatten_up_to(params)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, (leaf, param, spec) in enumerate(
            zip(self._leaves, values, found, strict=True)
        ):
            if is_masked(leaf):
                continue
            if jnp.shape(leaf) != jnp.shape(param):
                raise ValueError(
                    f"a gradient of shape {jnp.shape(leaf)} belongs to a parameter of "
                    f"shape {jnp.shape(param)}: they must be the same"
                )
            if math.prod(spec.shape):
                shape = tensor_shape(spec, factored_axes)
                alone = i if math.prod(shape) >= ALONE_FROM else None
                key = (shape, accumulator_dtype(param), alone)
                alike.setdefault(key, []).append(i)
        self._specs = found
        self._dtypes = [None if is_masked(p) else jnp.result_type(p) for p in values]
        self.groups = tuple(
            Alike(shape, dtype, tuple(leaves), tuple(_count(found[i]) for i in leaves))
            for (shape, dtype, _), leaves in alike.items()
        )

    @property
    def num_tensors(self) -> int:
        """Number of tensors in all groups."""
        return sum(group.size for group in self.groups)

    def stack(self, tree: Any) -> list[jax.Array]:
        """Stacks gradients or parameters: `[n, *S]` for each group, in its dtype."""
        leaves = self._structure.flatten_up_to(tree)
        return [
            _concatenate(
                [
                    self._specs[i]
                    .canonical(jnp.asarray(leaves[i]))
                    .reshape(count, *group.shape)
                    for i, count in zip(group.leaves, group.counts, strict=True)
                ]
            ).astype(group.dtype)
            for group in self.groups
        ]

    def stack_states(self, tree: Any) -> list[Any]:
        """Stacks states parallel to the parameters: `[n, ...]` for each group."""
        leaves = self._structure.flatten_up_to(tree)
        stacks = []
        for group in self.groups:
            parts = [
                jax.tree.map(lambda x, i=i: self._without_stack(i, x), leaves[i])
                for i in group.leaves
            ]
            stacks.append(jax.tree.map(lambda *xs: _concatenate(list(xs)), *parts))
        return stacks

    def unstack(self, stacks: list[jax.Array]) -> Any:
        """Inverts `stack`: a tree with the parameters' shapes and dtypes."""
        leaves = [
            leaf
            if is_masked(leaf)
            else jnp.zeros(self._specs[i].array_shape, self._dtypes[i])
            for i, leaf in enumerate(self._leaves)
        ]
        for group, stack in zip(self.groups, stacks, strict=True):
            for i, part in self._parts(group, stack):
                spec = self._specs[i]
                step = spec.as_given(part.reshape(spec.shape))
                leaves[i] = step.astype(self._dtypes[i])
        return self._structure.unflatten(leaves)

    def unstack_states(self, stacks: list[Any], old: Any) -> Any:
        """Inverts `stack_states`; `old` where a tensor is in no group."""
        leaves = self._structure.flatten_up_to(old)
        for group, stack in zip(self.groups, stacks, strict=True):
            flat, structure = jax.tree.flatten(stack)
            parts = [dict(self._parts(group, x)) for x in flat]
            for i in group.leaves:
                leaves[i] = structure.unflatten(
                    [self._with_stack(i, part[i]) for part in parts]
                )
        return self._structure.unflatten(leaves)

    def move(
        self, rule: Callable[..., Any], states: Any, *stacks: list[Any]
    ) -> tuple[Any, Any]:
        """Applies a rule to every tensor.

        Args:
            rule: (state, the tensor's entry of each stack) -> (step `[*S]`, state).
            states: parallel to the parameters.
            stacks: `[n, ...]` for each group.

        Returns:
            Steps and new states, both parallel to the parameters.
        """
        moved = [
            over(rule, *group)
            for group in zip(self.stack_states(states), *stacks, strict=True)
        ]
        steps = self.unstack([step for step, _ in moved])
        return steps, self.unstack_states([new for _, new in moved], states)

    def each(self, function: Callable[[ParamSpec], float]) -> list[Any]:
        """Maps specs to numbers: `[n]` for each group."""
        values = []
        for group in self.groups:
            numbers = [function(self._specs[i]) for i in group.leaves]
            repeated = np.repeat(np.asarray(numbers), np.asarray(group.counts))
            values.append(jnp.asarray(repeated, group.dtype))
        return values

    def split(self, tree: Any) -> list[Any]:
        """Splits arrays `[num_tensors, ...]` into `[n, ...]` for each group."""
        ends = np.cumsum([group.size for group in self.groups])
        return [
            jax.tree.map(lambda x, a=end - group.size, b=end: x[a:b], tree)
            for group, end in zip(self.groups, ends, strict=True)
        ]

    def _parts(self, group: Alike, stack: jax.Array) -> list[tuple[int, jax.Array]]:
        ends = np.cumsum(group.counts)
        return [
            (i, stack[end - count : end])
            for i, count, end in zip(group.leaves, group.counts, ends, strict=True)
        ]

    def _without_stack(self, leaf: int, x: jax.Array) -> jax.Array:
        rank = len(self._specs[leaf].axes.stacked)
        return x.reshape(-1, *x.shape[rank:]) if rank else x[None]

    def _with_stack(self, leaf: int, x: jax.Array) -> jax.Array:
        spec = self._specs[leaf]
        return x.reshape(*spec.shape[: len(spec.axes.stacked)], *x.shape[1:])


class RuleState(NamedTuple):
    """State of a rule that sees one tensor at a time."""

    step: jax.Array  # [] int32, updates done
    tensors: Any  # a state for each tensor, parallel to the parameters


RULE = "a learned optimizer"
"""Default name of a rule in messages."""

Move = Callable[[jax.Array, jax.Array, Any, jax.Array], tuple[jax.Array, Any]]
"""(gradient `[*S]`, parameter `[*S]`, state, `[]` updates done before) -> (step `[*S]`
that is added to the parameter, new state)."""


def transformation(
    init: Callable[[Blank], Any],
    move: Move,
    specs: Specs,
    scale: Callable[[ParamSpec], float],
    factored_axes: FactoredAxes = "tensor",
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer that moves every tensor by a rule of its own.

    Args:
        init: makes the state of one tensor, a pytree of `Blank.zeros`.
        move: the rule.
        specs: specs of all parameters.
        scale: factor of the parametrization on a parameter's steps.
        factored_axes: shape in which the rule sees a tensor.
    """

    def start(params: optax.Params) -> RuleState:
        states = init_states(params, specs, init, factored_axes)
        return RuleState(jnp.zeros([], jnp.int32), states)

    def update(
        updates: optax.Updates,
        state: RuleState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RuleState]:
        del extra_args
        arrangement = Arrangement(updates, need(params, RULE), specs, factored_axes)

        def one(tensor: Any, grad: Any, param: Any, scale: Any) -> tuple[Any, Any]:
            step, tensor = move(grad, param, tensor, state.step)
            return scale * step, tensor

        steps, new = arrangement.move(
            one,
            state.tensors,
            arrangement.stack(updates),
            arrangement.stack(params),
            arrangement.each(scale),
        )
        return steps, RuleState(state.step + 1, new)

    return optax.GradientTransformationExtraArgs(start, update)  # pyright: ignore


def need(params: optax.Params | None, name: str) -> optax.Params:
    """Returns the parameters, which optax lets a caller omit, or raises ValueError."""
    if params is None:
        raise ValueError(f"{name} needs params: update(grads, state, params)")
    return params


def init_states(
    params: Any,
    specs: Specs,
    init: Callable[[Blank], Any],
    factored_axes: FactoredAxes = "tensor",
) -> Any:
    """Returns a state for each tensor (arguments as in `transformation`)."""

    def one(param: Any, spec: ParamSpec) -> Any:
        lead, names = len(spec.axes.stacked), axis_names(param, spec.order)
        return init(
            Blank(
                like=param,
                shape=tensor_shape(spec, factored_axes),
                dtype=accumulator_dtype(param),
                names=merged(names, _groups(spec, factored_axes)),
                stacked=tuple(spec.shape[:lead]),
                stacked_names=names[:lead],
            )
        )

    return map_with_specs(one, bare(params), specs)


def over(function: Callable[..., Any], *stacks: Any) -> Any:
    """Vmaps a function of one tensor over `[n, ...]` of them."""
    n = jax.tree.leaves(stacks)[0].shape[0]
    if n > 1:
        return jax.vmap(function)(*stacks)
    # A single tensor runs the program of the function itself.
    single = jax.tree.map(lambda x: x.reshape(x.shape[1:]), stacks)
    return jax.tree.map(lambda x: x[None], function(*single))


def tensor_shape(
    spec: ParamSpec, factored_axes: FactoredAxes = "tensor"
) -> tuple[int, ...]:
    """Returns the shape `S` in which a rule sees one tensor, without stacked axes.

    A "matrix" has its fan-in axes merged into one, behind the positions of a
    convolution, and its fan-out axes into one. An axis named `fixed` has no known
    role: a tensor that has one keeps its shape.
    """
    groups = _groups(spec, factored_axes)
    return tuple(math.prod(spec.shape[i] for i in group) for group in groups)


def _groups(spec: ParamSpec, factored_axes: FactoredAxes) -> Groups:
    """Returns the axes of the parameter that are merged into each axis of `S`."""
    axes, lead = spec.axes, len(spec.axes.stacked)
    own = range(lead, len(spec.shape))
    groups: Groups = [(i,) for i in own]
    if factored_axes == "matrix" and "fixed" not in axes.names:
        positions, inner = num_positions(axes), len(axes.fan_in)
        sides = (tuple(own[positions:inner]), tuple(own[inner:]))
        groups = [*groups[:positions], *(side for side in sides if side)]
    # A scalar is seen as a vector of one element.
    return groups or [()]


def num_positions(axes: Axes) -> int:
    """Returns the number of leading fan-in axes over which a convolution slides."""
    positions = itertools.takewhile(lambda name: name == POSITION, axes.fan_in)
    return sum(1 for _ in positions)


def accumulator_dtype(param: jax.Array) -> jnp.dtype:
    """Returns the dtype of a parameter's accumulators, at least float32.

    Raises:
        ValueError: for a parameter that is not real and floating-point.
    """
    checks.floating(param)
    return jnp.promote_types(jnp.result_type(param), jnp.float32)


def _count(spec: ParamSpec) -> int:
    return math.prod(spec.shape[: len(spec.axes.stacked)])


def _concatenate(parts: list[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
