"""mlp_lopt: a small network on gradient, parameter, six momenta and the time.

It has no second moments, so it is a cheap control for those of `SmallFC`.

References:
    Metz et al., Understanding and correcting pathologies in the training of learned
    optimizers, arXiv:1810.10180.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from configuration.fields import configuration, later
from lopt import checks, tensors
from lopt.base import NumSteps, Specs, Theta, Transform
from lopt.per_parameter import accumulators, features
from lopt.per_parameter import network as per_parameter_mlp
from lopt.per_parameter.accumulators import Complements, TensorState
from lopt.per_parameter.epsilons import PAPER, Epsilons
from lopt.per_parameter.features import Counts, Quantities
from lopt.per_parameter.forms import Execution
from lopt.placement import Blank, under_any_mesh
from parametrization.rules import STANDARD, Rules


@configuration
class MLPLOpt:
    """The learned optimizer mlp_lopt; its 19 inputs are `features.MLP_LOPT`."""

    hidden_size: int = 32
    """Units of each hidden layer of the network."""
    hidden_layers: int = 2
    """Hidden layers of the network."""
    step_mult: float = 0.001
    """Scale of a step."""
    exp_mult: float = 0.001
    """Scale of the learned log-magnitude of a step."""
    output_scale: float = 1.0
    """Factor on the last layer at initialization; at 0 no step is taken."""
    momentum_decays: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
    """Decays of the momenta; they are not learned."""
    epsilons: Epsilons = PAPER
    """Floors inside the features."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP) or STANDARD."""
    execution: Execution = later(Execution())
    """Execution of the per-parameter network."""
    NOT_STORED: ClassVar[tuple[str, ...]] = ("output_scale", "execution")
    """Fields that are no property of trained weights."""

    def __post_init__(self) -> None:
        checks.network(self)
        checks.decays(self, "momentum_decays")
        checks.step_rules(self.rules)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the network's inputs, in order."""
        return features.MLP_LOPT.names(Counts(len(self.momentum_decays)))

    def init(self, key: jax.Array) -> Theta:
        """Draws the weights: `{"layer_i": {"kernel", "bias"}}`."""
        sizes = (len(self.feature_names), self.hidden_size, self.hidden_layers, 2)
        return per_parameter_mlp.init(key, *sizes, self.output_scale)

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer; `num_steps` is not used."""
        del num_steps

        def move(
            grad: jax.Array, param: jax.Array, state: TensorState, step: jax.Array
        ) -> tuple[jax.Array, TensorState]:
            state = self._accumulate(state, grad)
            q = Quantities(grad, param, state, step, self.epsilons)
            moved = per_parameter_mlp.displacement(
                theta, features.MLP_LOPT, q, self.exp_mult, self.execution
            )
            return -self.step_mult * moved, state

        return tensors.transformation(
            self._init_tensor, move, specs, self.rules.step_scale
        )

    def features(
        self, theta: Theta, state: tensors.RuleState, grads: Any, params: Any
    ) -> Any:
        """Returns the network's inputs in the next update (see `SmallFC.features`)."""
        del theta

        def one(grad: jax.Array, param: jax.Array, tensor: TensorState) -> jax.Array:
            grad, param = jnp.atleast_1d(grad), jnp.atleast_1d(param)
            tensor = self._accumulate(tensor, grad)
            q = Quantities(grad, param, tensor, state.step, self.epsilons)
            return features.all_features(features.MLP_LOPT, q)

        return jax.tree.map(one, grads, params, state.tensors)

    def _init_tensor(self, like: Blank) -> TensorState:
        return accumulators.init(like, len(self.momentum_decays), 0, 0)

    def _accumulate(self, state: TensorState, grad: jax.Array) -> TensorState:
        dtype = state.momentum.dtype
        momentum = accumulators.fixed(self.momentum_decays, dtype)
        return accumulators.update(
            state, grad.astype(dtype), Complements(momentum), self.epsilons
        )
