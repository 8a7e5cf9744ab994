"""The per-parameter half of VeLO and Celo: a tiny network, steps in units of weights.

A parameter moves by `direction·exp(magnitude·exp_mult)·step_mult·s·f`, where s is the
root mean square of its tensor and f the scheduler's factor (`tensor_lstm`). So a step
is a fraction of what it changes, and a tensor of zeros moves by 3·10⁻⁵ of a step at
first. In μP s is left out: the parametrization says how large a step may be.

The original network has a third output, which is not used and no part of θ here.

References:
    Metz et al., VeLO, arXiv:2211.09760, Appendix B.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lopt import accumulators, features, per_parameter_mlp, sanitizer
from lopt.accumulators import Complements, TensorState
from lopt.epsilons import PAPER, Epsilons
from lopt.features import VELO, Counts, Quantities
from lopt.per_parameter_mlp import Layers

GRADIENT_BOUND = 1000.0
"""Gradients are clipped to ± this, entry by entry."""

VELO_EPSILONS = dataclasses.replace(PAPER, one_dimensional=1e-37)
"""Those of the paper; the momentum of a vector is divided by the bare root."""


@dataclasses.dataclass(frozen=True)
class ScaledMLP:
    """The rule for one tensor; a part of an optimizer, not one itself."""

    hidden_size: int
    hidden_layers: int
    step_mult: float
    exp_mult: float
    param_scale_mult: bool
    momentum_decays: tuple[float, ...]
    second_moment_decay: float
    factored_decays: tuple[float, ...]
    epsilons: Epsilons

    def __post_init__(self) -> None:
        for name in ("hidden_size", "hidden_layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"ff_{name} = {value} must be a positive whole number")
        if not 0.0 < self.step_mult <= 1e3:
            raise ValueError(f"step_mult = {self.step_mult} must lie in (0, 1000]")
        if not abs(self.exp_mult) <= 1e3:
            raise ValueError(f"exp_mult = {self.exp_mult} must lie in [-1000, 1000]")
        if not self.momentum_decays:
            raise ValueError("momentum_decays = () must name at least one decay")
        if len(self.momentum_decays) != len(self.factored_decays):
            raise ValueError(
                f"factored_decays = {self.factored_decays} must be as many as "
                f"momentum_decays = {self.momentum_decays}: each momentum is divided "
                "by the factored moment of the same index"
            )
        for decay in (
            *self.momentum_decays,
            self.second_moment_decay,
            *self.factored_decays,
        ):
            if not 0.0 <= decay < 1.0:
                raise ValueError(f"decay {decay} must lie in [0, 1)")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the network's inputs, in order."""
        num_decays = len(self.momentum_decays)
        return VELO.names(Counts(num_decays, 1, num_decays))

    def init(self, key: jax.Array) -> Layers:
        """Weights of a network with two outputs (see `per_parameter_mlp.init`)."""
        return per_parameter_mlp.init(
            key, len(self.feature_names), self.hidden_size, self.hidden_layers, 2
        )

    def empty(self, shape: tuple[int, ...], dtype: jnp.dtype) -> TensorState:
        """Accumulators of a tensor of shape `S` before the first gradient."""
        return accumulators.init(shape, len(self.momentum_decays), dtype)

    def accumulate(
        self, state: TensorState, grad: jax.Array, gradient_scale: jax.Array
    ) -> tuple[jax.Array, TensorState]:
        """The gradient `[*S]` as the base model would see it, clipped; accumulators."""
        grad = sanitizer.bounded(grad / gradient_scale, GRADIENT_BOUND)
        weights = Complements(
            *(
                accumulators.fixed(decays, grad.dtype)
                for decays in (
                    self.momentum_decays,
                    (self.second_moment_decay,),
                    self.factored_decays,
                )
            )
        )
        return grad, accumulators.update(state, grad, weights, self.epsilons)

    def quantities(
        self, grad: jax.Array, param: jax.Array, state: TensorState
    ) -> Quantities:
        """What the features are computed from; none of them tells the time."""
        return Quantities(grad, param, state, jnp.zeros([], jnp.int32), self.epsilons)

    def step(
        self, layers: Layers, grad: jax.Array, param: jax.Array, state: TensorState
    ) -> jax.Array:
        """How far a tensor `[*S]` moves against the outputs, at factor 1."""
        q = self.quantities(grad, param, state)
        out = per_parameter_mlp.apply(layers, features.VELO, q)
        step = self.step_mult * out[..., 0] * jnp.exp(self.exp_mult * out[..., 1])
        if self.param_scale_mult:
            step = step * jnp.sqrt(jnp.mean(param * param) + 1e-9)
        return step
