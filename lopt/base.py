"""The interface of a learned optimizer: given θ, it is an optax transformation."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import optax

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
