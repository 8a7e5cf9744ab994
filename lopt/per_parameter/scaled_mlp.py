"""The per-parameter half of VeLO and Celo: a tiny network, steps in units of weights.

A parameter moves by `direction·exp(magnitude·exp_mult)·step_mult·s·f`, where s is the
root mean square of its tensor and f the scheduler's factor. A tensor of zeros moves by
3·10⁻⁵ of a step at first. In μP s is left out: the parametrization sets the size of a
step. The network has a third, unused output, so that released weights fit.

References:
    Metz et al., VeLO, arXiv:2211.09760, Appendix B.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lopt import checks, clipping
from lopt.per_parameter import accumulators, features
from lopt.per_parameter import network as per_parameter_mlp
from lopt.per_parameter.accumulators import Complements, TensorState
from lopt.per_parameter.epsilons import PAPER, Epsilons
from lopt.per_parameter.features import VELO, Counts, Quantities
from lopt.per_parameter.forms import Execution
from lopt.per_parameter.network import Layers
from lopt.placement import Blank
from parametrization.rules import ADAM_LIKE, STANDARD

VELO_EPSILONS = dataclasses.replace(PAPER, one_dimensional=1e-37)
"""Floors of the paper; a vector's momentum is divided by the bare root."""


@dataclasses.dataclass(frozen=True)
class ScaledMLP:
    """The rule for one tensor; fields are those of `lopt.learned.velo.VeLO`."""

    hidden_size: int
    hidden_layers: int
    step_mult: float
    exp_mult: float
    param_scale_mult: bool
    momentum_decays: tuple[float, ...]
    second_moment_decay: float
    factored_decays: tuple[float, ...]
    epsilons: Epsilons
    execution: Execution

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the network's inputs, in order."""
        num_decays = len(self.momentum_decays)
        return VELO.names(Counts(num_decays, 1, num_decays))

    def init(self, key: jax.Array) -> Layers:
        """Draws the weights of a network with three outputs."""
        return per_parameter_mlp.init(
            key, len(self.feature_names), self.hidden_size, self.hidden_layers, 3
        )

    def empty(self, like: Blank) -> TensorState:
        """Returns the accumulators of a tensor before the first gradient."""
        return accumulators.init(like, len(self.momentum_decays))

    def accumulate(
        self, state: TensorState, grad: jax.Array, gradient_scale: jax.Array
    ) -> tuple[jax.Array, TensorState]:
        """Returns the gradient at the base model's size, clipped, and accumulators."""
        grad = clipping.bounded(grad / gradient_scale, clipping.GRADIENT_BOUND)
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
        """Returns the inputs of the features, none of which depends on time."""
        return Quantities(grad, param, state, jnp.zeros([], jnp.int32), self.epsilons)

    def step(
        self, layers: Layers, grad: jax.Array, param: jax.Array, state: TensorState
    ) -> jax.Array:
        """Returns the displacement of a tensor, to be subtracted, at factor 1."""
        q = self.quantities(grad, param, state)
        step = self.step_mult * per_parameter_mlp.displacement(
            layers, features.VELO, q, self.exp_mult, self.execution
        )
        if self.param_scale_mult:
            step = step * jnp.sqrt(jnp.mean(param * param) + 1e-9)
        return step


def of(owner: Any) -> ScaledMLP:
    """Returns the rule that an optimizer's fields describe."""
    return ScaledMLP(
        hidden_size=owner.ff_hidden_size,
        hidden_layers=owner.ff_hidden_layers,
        step_mult=owner.step_mult,
        exp_mult=owner.exp_mult,
        param_scale_mult=_scales(owner),
        momentum_decays=owner.momentum_decays,
        second_moment_decay=owner.second_moment_decay,
        factored_decays=owner.factored_decays,
        epsilons=owner.epsilons,
        execution=owner.execution,
    )


def check_fields(owner: Any) -> None:
    """Checks the fields that an optimizer gives to its `ScaledMLP`.

    Raises:
        ValueError: naming the field, its value and the remedy.
    """
    checks.positive_integer(owner, "ff_hidden_size", "ff_hidden_layers")
    checks.positive(owner, "step_mult")
    checks.within(owner, "exp_mult", -1e3, 1e3)
    checks.decays(owner, "momentum_decays", "second_moment_decay", "factored_decays")
    checks.as_many(owner, "factored_decays", "momentum_decays")
    checks.step_rules(owner.rules)
    if owner.rules is ADAM_LIKE and owner.param_scale_mult:
        raise ValueError(
            "param_scale_mult = True makes steps grow with the weights, so μP (rules = "
            "ADAM_LIKE) does not hold: it must be False or None"
        )


def _scales(owner: Any) -> bool:
    if owner.param_scale_mult is None:
        return owner.rules is STANDARD
    return owner.param_scale_mult
