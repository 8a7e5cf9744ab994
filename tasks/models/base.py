"""Base class of models: frozen descriptions of networks, with plain functions.

A family is a frozen dataclass whose fields give the shape of the network, and whose
`forward` computes it with linen. Nothing outside this folder sees a linen module.
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

from configuration.fields import ABSENT, configuration
from parametrization.rules import ReadoutInit, Rules
from parametrization.spec import param_specs, unbox

ACTIVATIONS = "activations"
"""Linen collection of recorded intermediate values."""

Activation = Literal[
    "relu", "relu6", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "elu", "selu"
]


@configuration
class _Shared:
    """Fields of every model."""

    # By keyword, so that the fields of a family come first; left out of representations
    # as of stored files.
    readout_init: ReadoutInit = dataclasses.field(
        default="zero", kw_only=True, repr=False, metadata={ABSENT: "zero"}
    )
    """Start of the readouts: zero, so that logits are exactly 0, or lecun, for
    optimizers that hardly move what starts at zero (see `tasks.models.layers.readout`).
    """


class Model(_Shared, abc.ABC):
    """A family of networks; subclasses are final frozen dataclasses.

    Fields of type int must be positive. In shapes, `B` is the batch.
    """

    width: int
    """Size that grows when the network is made wider."""
    depth: int
    """Number of hidden layers, or of residual blocks."""
    base_width: int
    """Width of the base model, where μP multipliers are 1."""
    rules: Rules
    """Parametrization of the forward pass."""
    input_dtype: ClassVar[Any] = jnp.float32
    """int32 if inputs are tokens."""

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self)  # pyright: ignore
        check_positive(self, *(f.name for f in fields if f.type in ("int", int)))

    @abc.abstractmethod
    def forward(self, module: nn.Module, x: Any, num_outputs: int, /) -> Any:
        """Maps `[B, *input_shape]` to `[B, ..., num_outputs]` inside a linen module.

        Layers created here belong to `module`, whose `param` and `make_rng` give
        parameters and keys.
        """

    def example(self, input_shape: tuple[int, ...], num_outputs: int) -> Any:
        """Returns one input of zeros, with which the network is initialized.

        A model with several inputs takes another pytree here and in `apply`.
        """
        del num_outputs
        return jnp.zeros((1, *input_shape), self.input_dtype)

    def at_width(self, width: int) -> Self:
        """Returns the same network at another width; its base stays."""
        return self._with(width=width)

    def at_depth(self, depth: int) -> Self:
        """Returns the same network at another depth; its base stays."""
        return self._with(depth=depth)

    def with_rules(self, rules: Rules) -> Self:
        """Returns the same network in another parametrization."""
        return self._with(rules=rules)

    def with_base_width(self, base_width: int) -> Self:
        """Returns the same network with another base width."""
        return self._with(base_width=base_width)

    def with_readout_init(self, readout_init: ReadoutInit) -> Self:
        """Returns the same network with other initial readouts.

        Raises:
            ValueError: in one line, if its readout cannot start so.
        """
        return self._with(readout_init=readout_init)

    def _with(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)  # pyright: ignore

    def base(self) -> Self:
        """Returns the base model at this depth, whose shapes are the base shapes."""
        return self.at_width(self.base_width)

    @property
    def base_sizes(self) -> dict[str, int]:
        """Width and depth of the base model."""
        depth = getattr(self, "base_depth", self.depth)
        return {"width": self.base_width, "depth": depth}

    @property
    def depth_mult(self) -> float:
        """Ratio of the depth to that of the base model."""
        return self.depth / self.base_sizes["depth"]

    @property
    def residual_scale(self) -> float:
        """Factor on every residual branch."""
        return self.rules.residual_scale(self.depth, self.base_sizes["depth"])

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Width of each layer or block, first to last."""
        return (self.width,) * self.depth

    def init(
        self, key: jax.Array, input_shape: tuple[int, ...], num_outputs: int
    ) -> Any:
        """Initializes parameters for inputs `[B, *input_shape]`, as plain arrays."""
        return unbox(self._boxed_init(key, input_shape, num_outputs))

    def specs(self, input_shape: tuple[int, ...], num_outputs: int) -> Any:
        """Returns the specs of the parameters, without allocating anything.

        Raises:
            ValueError: naming a parameter without a role.
        """
        return _specs(self, tuple(input_shape), num_outputs)

    def apply(
        self, params: Any, x: Any, num_outputs: int, key: jax.Array | None = None
    ) -> Any:
        """Computes outputs for inputs `[B, *input_shape]`, in float32 at least.

        Layers multiply in the dtype of their parameters, for mixed precision.
        """
        module = _Network(self, num_outputs)
        outputs = module.apply({"params": params}, x, rngs=_rngs(key))
        return jax.tree.map(_at_least_float32, outputs)

    def activations(
        self, params: Any, x: Any, num_outputs: int, key: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Computes the recorded values of every layer, by path."""
        module = _Network(self, num_outputs)
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
        return _Network(self, num_outputs).init(keys, inputs)["params"]


class _Network(nn.Module):
    model: Model
    num_outputs: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return self.model.forward(self, x, self.num_outputs)


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
    """Records an intermediate value under `name` for `Model.activations`.

    Free unless activations are asked for: linen drops values of other collections.
    """
    module.sow(ACTIVATIONS, name, value, init_fn=lambda: None, reduce_fn=_newest)
    return value


def _newest(_: Any, new: Any) -> Any:
    return new


def activation(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """Returns the nonlinearity of that name."""
    return getattr(nn, name)


LARGEST = 2**31 - 1
"""Largest size: an int32 index."""
DEEPEST = 10_000
"""Largest number of layers, which are traced one by one."""


def check_positive(model: Any, *names: str) -> None:
    """Raises ValueError if a named field is not a positive whole number in range."""
    for name in names:
        value = getattr(model, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} = {value!r} must be a positive whole number")
        most = DEEPEST if name in ("depth", "base_depth") else LARGEST
        if value > most:
            raise ValueError(f"{name} = {value} must be at most {most:,}")
