"""The interface of a learned optimizer: given θ, it is an optax transformation."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from parametrization.paths import leaves_by_name, names_of, written
from parametrization.spec import ParamSpec

Theta: TypeAlias = Any
Specs: TypeAlias = Any
NumSteps: TypeAlias = int | jax.Array
Transform: TypeAlias = optax.GradientTransformationExtraArgs


@runtime_checkable
class LearnedOptimizer(Protocol):
    """A family of update rules indexed by meta-parameters θ, a dict of arrays.

    Implementations are frozen dataclasses: an instance is hashable and static under
    `jit`, while θ is an ordinary argument.
    """

    def init(self, key: jax.Array) -> Theta:
        """Returns initial meta-parameters."""
        ...

    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer that θ describes.

        Args:
            theta: meta-parameters; may be traced.
            specs: tree of `ParamSpec`, parallel to the parameters.
            num_steps: `[]` int32, inner steps of the whole run; may be traced.

        Returns:
            A transformation whose updates are *added* to the parameters. Its `update`
            needs `params`; a rule that needs the loss before the update takes it as the
            keyword `loss` or, where that is not given, `value`, optax's name for it.
        """
        ...


def frozen_parts(owner: Any) -> tuple[str, ...]:
    """Returns names at θ's top level that meta-training freezes (`owner.frozen`)."""
    return tuple(getattr(owner, "frozen", ()))


def follows_size(owner: Any) -> bool:
    """Whether steps are in units of a tensor's own size, so that zeros hardly move.

    So says an optimizer's `steps_follow_size`, or that of one that it wraps.
    """
    if getattr(owner, "steps_follow_size", False):
        return True
    fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
    inner = (getattr(owner, field.name) for field in fields)
    return any(follows_size(x) for x in inner if isinstance(x, LearnedOptimizer))


def learned_decays(owner: Any, theta: Theta) -> dict[str, jax.Array]:
    """Returns the decays, `[]` or `[K]` by name, that are part of θ; mostly none."""
    method = getattr(owner, "learned_decays", None)
    return {} if method is None else method(theta)


def own_theta(lopt: LearnedOptimizer, theta: Theta) -> Theta:
    """Returns θ in the optimizer's own tree structure.

    Raises:
        ValueError: naming a leaf that is missing, unknown, of another shape or dtype.
    """
    wanted = jax.eval_shape(lopt.init, jax.random.key(0))
    given = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(theta)
    }
    if differs := first_difference(theta, wanted):
        name, here, there = differs
        raise ValueError(f"theta{name} is {here} and must be {there}")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: given[jax.tree_util.keystr(path)], wanted
    )


def first_difference(one: Theta, other: Theta) -> tuple[str, str, str] | None:
    """Finds a leaf that is not in both, or differs in dtype or shape.

    Returns:
        Its path, and its description in the one and in the other; None if they agree.
    """
    here, there = _leaves(one), _leaves(other)
    for name in sorted(here.keys() | there.keys()):
        mine, theirs = here.get(name, "absent"), there.get(name, "absent")
        if mine != theirs:
            return name, mine, theirs
    return None


def _leaves(theta: Theta) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): _described(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(theta)
    }


def _described(leaf: Any) -> str:
    try:
        return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
    except TypeError:
        return f"a {type(leaf).__name__}"


def need_loss(
    loss: jax.typing.ArrayLike | None, value: jax.typing.ArrayLike | None, name: str
) -> jax.typing.ArrayLike:
    """Returns the loss `[]` before the update, given under either keyword.

    Raises:
        ValueError: if there is none, or it is no scalar.
    """
    loss = value if loss is None else loss
    if loss is None:
        raise ValueError(
            f"{name} needs the loss: update(grads, state, params, loss=loss)"
        )
    if jnp.shape(loss):
        raise ValueError(f"loss has shape {jnp.shape(loss)}, must be one number")
    return loss


def is_masked(leaf: Any) -> bool:
    """Whether optax hides this tensor, as `optax.multi_transform` does."""
    return isinstance(leaf, optax.MaskedNode)


def flatten_with_specs(tree: Any, specs: Specs) -> tuple[list[Any], Any, list[Any]]:
    """Flattens parameters or gradients together with their specs.

    Specs are found by the names of `parametrization.paths`, so their containers may be
    others than those of the parameters, and there may be more of them.

    Returns:
        Leaves, the tree's structure, and specs: None for a masked leaf.

    Raises:
        ValueError: naming a parameter without a spec, or of another shape.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_masked)
    known = leaves_by_name(specs)

    def spec_of(path: Any, leaf: Any) -> Any:
        if is_masked(leaf):
            return None
        names = names_of(path)
        if not isinstance(known.get(names), ParamSpec):
            lack = "None" if specs is None else f"without parameter {written(names)}"
            raise ValueError(
                f"specs are {lack}: they must be a tree of ParamSpec parallel to the "
                "parameters, as task.specs() or "
                "parametrization.infer_specs(params, params)"
            )
        spec = known[names]
        if jnp.shape(leaf) != spec.array_shape:
            raise ValueError(
                f"parameter {written(names)} or its gradient has shape "
                f"{jnp.shape(leaf)}, but the spec of one of shape {spec.array_shape}: "
                "specs must be those of this model, not of its base"
            )
        return spec

    return [leaf for _, leaf in found], structure, [spec_of(*pair) for pair in found]


def map_with_specs(
    function: Callable[..., Any], tree: Any, specs: Specs, *rest: Any
) -> Any:
    """Maps over tensors, their specs and parallel trees; masked tensors stay.

    Args:
        function: (leaf, spec, the leaf or sub-tree of each of `rest`) -> new leaf.
        tree: parameters or gradients.
        specs: see `flatten_with_specs`.
        rest: trees parallel to `tree`.
    """
    leaves, structure, found = flatten_with_specs(tree, specs)
    others = (structure.flatten_up_to(other) for other in rest)
    return structure.unflatten(
        leaf if is_masked(leaf) else function(leaf, *arguments)
        for leaf, *arguments in zip(leaves, found, *others, strict=True)
    )


def bare(params: Any) -> Any:
    """Takes arrays out of variables of Flax NNX, for a state beside the arrays.

    `nnx.Optimizer` gives variables to `init` and arrays to `update`, and would keep the
    state of a tensor inside a variable as a tree of its own making.
    """
    # Where nobody has imported NNX there are no variables; to import it takes 0.5 s.
    nnx = sys.modules.get("flax.nnx")
    return params if nnx is None else nnx.as_pure(params)
