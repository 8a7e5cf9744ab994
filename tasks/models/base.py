"""What all families of models share: a frozen description with plain functions.

A family is a frozen dataclass whose fields are the shape of the network. It says what
its linen module is and what its base model is; everything else follows here. Nothing
outside this folder sees a linen module.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from parametrization.rules import Rules
from parametrization.spec import param_specs, unbox

ACTIVATIONS = "activations"
"""The linen collection in which layers record what they computed."""

Activation = Literal[
    "relu", "relu6", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "elu", "selu"
]


class Model(abc.ABC):
    """A family of networks; subclasses are final frozen dataclasses.

    In shapes, `B` is the batch.
    """

    width: int
    """The size that grows when the network is made wider."""
    depth: int
    """The number of hidden layers, or of residual blocks."""
    base_width: int
    """Width of the base model, at which every μP multiplier is 1."""
    rules: Rules
    """Parametrization of the forward pass."""
    input_dtype: ClassVar[Any] = jnp.float32
    """int32 where the inputs are tokens."""

    @property
    def base_sizes(self) -> dict[str, int]:
        """Width and depth of the base model, for whoever stores or shows them."""
        depth = getattr(self, "base_depth", self.depth)
        return {"width": self.base_width, "depth": depth}

    @abc.abstractmethod
    def at_width(self, width: int) -> Self:
        """The same network of another width; its base stays."""

    @abc.abstractmethod
    def at_depth(self, depth: int) -> Self:
        """The same network of another depth; its base stays."""

    @abc.abstractmethod
    def module(self, num_outputs: int) -> nn.Module:
        """The linen module, a map of `[B, *input_shape]` to `[B, ..., num_outputs]`."""

    def example(self, input_shape: tuple[int, ...], num_outputs: int) -> Any:
        """One input of zeros, with which the network is initialized.

        A model of more than one array takes another pytree here and in `apply`.
        """
        del num_outputs
        return jnp.zeros((1, *input_shape), self.input_dtype)

    def base(self) -> Self:
        """The model of the same depth whose shapes are the base shapes."""
        return self.at_width(self.base_width)

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Width of each layer or block, first to last."""
        return (self.width,) * self.depth

    def with_rules(self, rules: Rules) -> Self:
        """The same network in another parametrization."""
        return dataclasses.replace(self, rules=rules)  # pyright: ignore

    def with_base_width(self, base_width: int) -> Self:
        """The same network beside a base model of another width."""
        return dataclasses.replace(self, base_width=base_width)  # pyright: ignore

    def init(
        self, key: jax.Array, input_shape: tuple[int, ...], num_outputs: int
    ) -> Any:
        """Initial parameters for inputs `[B, *input_shape]`, as plain arrays."""
        return unbox(self._boxed_init(key, input_shape, num_outputs))

    def specs(self, input_shape: tuple[int, ...], num_outputs: int) -> Any:
        """Specs of the parameters, with the base model beside; nothing is allocated.

        Raises:
            ValueError: naming the parameter that was not given a role.
        """
        return _specs(self, tuple(input_shape), num_outputs)

    def apply(
        self,
        params: Any,
        x: Any,
        num_outputs: int,
        key: jax.Array | None = None,
    ) -> Any:
        """Outputs for inputs `[B, *input_shape]`, in float32 at least.

        The layers multiply in the dtype of their parameters: given copies in bfloat16,
        the network is trained in mixed precision.
        """
        module = self.module(num_outputs)
        outputs = module.apply({"params": params}, x, rngs=_rngs(key))
        return jax.tree.map(_at_least_float32, outputs)

    def activations(
        self,
        params: Any,
        x: Any,
        num_outputs: int,
        key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """What every layer computed, by its path: pre-activations, logits, ..."""
        module = self.module(num_outputs)
        _, state = module.apply(
            {"params": params}, x, rngs=_rngs(key), mutable=[ACTIVATIONS]
        )
        if ACTIVATIONS not in state:
            raise ValueError(
                f"model {type(self).__name__} records no activations: call "
                "record(module, name, value) or use the layers of tasks.models.layers"
            )
        recorded: Any = traverse_util.flatten_dict(dict(state[ACTIVATIONS]), sep="/")
        return recorded

    def _boxed_init(
        self, key: jax.Array, input_shape: tuple[int, ...], num_outputs: int
    ) -> Any:
        inputs = self.example(input_shape, num_outputs)
        keys = {"params": key, **_rngs(key)}
        return self.module(num_outputs).init(keys, inputs)["params"]


@functools.cache
def _specs(model: Model, input_shape: tuple[int, ...], num_outputs: int) -> Any:
    base = model.base()
    return param_specs(
        lambda key: model._boxed_init(key, input_shape, num_outputs),
        lambda key: base._boxed_init(key, input_shape, num_outputs),
    )


def _at_least_float32(x: jax.Array) -> jax.Array:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if floating else x


def _rngs(key: jax.Array | None) -> dict[str, jax.Array]:
    return {} if key is None else {"sample": key}


def record(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
    """Notes an intermediate value under `name` for `Model.activations`.

    Costs nothing where nobody asks: linen drops what no collection takes.
    """
    module.sow(ACTIVATIONS, name, value, init_fn=lambda: None, reduce_fn=_newest)
    return value


def _newest(_: Any, new: Any) -> Any:
    return new


def activation(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """The nonlinearity of that name."""
    return getattr(nn, name)


LARGEST = 2**31 - 1
"""Sizes are indices of int32."""
DEEPEST = 10_000
"""Layers are traced one by one: more would never end."""


def check_positive(model: Any, *names: str) -> None:
    """Raises ValueError if one of the named fields is not a positive whole number."""
    for name in names:
        value = getattr(model, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} = {value!r} must be a positive whole number")
        most = DEEPEST if name in ("depth", "base_depth") else LARGEST
        if value > most:
            raise ValueError(f"{name} = {value} must be at most {most:,}")
