"""small_fc_lopt: a small network on Adafactor-style features, one step per parameter.

Every parameter moves by `−direction·exp(magnitude·exp_mult)·step_mult·scale`, within a
bound if `largest_step` sets one. The network computes direction and magnitude from the
parameter's own features; `scale` is 1 in the standard parametrization and
base-fan-in/fan-in for hidden matrices in μP (μLO). The features (gradient, parameter,
running moments, factored moments and time) are `lopt.per_parameter.features.SMALL_FC`.

References:
    Metz et al., Practical tradeoffs between memory, compute, and performance in learned
    optimizers, arXiv:2203.11860; Thérien et al., μLO, arXiv:2406.00153, Section 4.
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
from lopt.tensors import FactoredAxes, RuleState
from parametrization.rules import STANDARD, Rules


@configuration
class SmallFC:
    """The learned optimizer small_fc_lopt; with `rules=ADAM_LIKE` it is μLO."""

    hidden_size: int = 32
    """Units of each hidden layer of the network."""
    hidden_layers: int = 2
    """Hidden layers of the network."""
    step_mult: float = 0.001
    """Scale of a step (λ1 of the papers): .001 in the standard parametrization."""
    exp_mult: float = 0.001
    """Scale of the learned log-magnitude of a step (λ2)."""
    output_scale: float = 1.0
    """Factor on the last layer at initialization. At 1, as in the papers, an untrained
    optimizer takes random steps; at 0 it takes none, so no early episode diverges."""
    initial_step: float = later(0.0)
    """Root mean square of an untrained optimizer's steps along Adam's direction, the
    first momentum over the root of the second moment, in units of step_mult. Two units
    of each hidden layer then begin by passing that feature on."""
    largest_step: float | None = later(None)
    """Bound on a parameter's step in units of step_mult, before μP's scale; None sets
    none. The exponential of a learned magnitude is unbounded where features are rare:
    in large tensors a few parameters may else move by hundreds."""
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Initial decays of the momenta."""
    second_moment_decay: float = 0.999
    """Initial decay of the second moment."""
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Initial decays of the factored second moments, as many as momenta."""
    epsilons: Epsilons = PAPER
    """Floors inside the features."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP) or STANDARD."""
    execution: Execution = later(Execution())
    """Execution of the per-parameter network."""
    factored_axes: FactoredAxes = later("matrix", absent="tensor")
    """Axes of factored second moments: all fan-in by all fan-out ("matrix"), or the two
    largest ("tensor"; see `lopt.tensors`)."""
    NOT_STORED: ClassVar[tuple[str, ...]] = (
        "output_scale",
        "initial_step",
        "execution",
    )
    """Fields that are no property of trained weights."""

    def __post_init__(self) -> None:
        checks.network(self)
        checks.decays(self, "momentum_decays", "second_moment_decay", "factored_decays")
        checks.as_many(self, "factored_decays", "momentum_decays")
        checks.step_rules(self.rules)
        checks.within(self, "initial_step", 0.0, 1e3)
        if self.largest_step is not None:
            checks.positive(self, "largest_step")
        if self.initial_step and self.hidden_size < 2:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be at least 2 with "
                f"initial_step = {self.initial_step}, which takes two units"
            )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the network's inputs, in order."""
        num_decays = len(self.momentum_decays)
        return features.SMALL_FC.names(Counts(num_decays, 1, num_decays))

    def init(self, key: jax.Array) -> Theta:
        """Draws the network's weights; offsets of the decays are 0.

        Returns:
            `{"layer_i": {"kernel", "bias"}, "momentum_offsets": [K],
            "second_moment_offsets": [1], "factored_offsets": [K]}`.
        """
        num_decays = len(self.momentum_decays)
        sizes = (len(self.feature_names), self.hidden_size, self.hidden_layers, 2)
        layers = per_parameter_mlp.init(key, *sizes, self.output_scale)
        if self.initial_step:
            adam = self.feature_names.index("normalized_momentum_0")
            layers = per_parameter_mlp.pass_on(layers, adam, self.initial_step)
        return {
            **layers,
            "momentum_offsets": jnp.zeros(num_decays),
            "second_moment_offsets": jnp.zeros(1),
            "factored_offsets": jnp.zeros(num_decays),
        }

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer; `num_steps` is not used."""
        del num_steps
        complements = self._complements(theta)
        layers = self._layers(theta)

        def move(
            grad: jax.Array, param: jax.Array, state: TensorState, step: jax.Array
        ) -> tuple[jax.Array, TensorState]:
            state = accumulators.update(state, grad, complements, self.epsilons)
            q = Quantities(grad, param, state, step, self.epsilons)
            moved = per_parameter_mlp.displacement(
                layers, features.SMALL_FC, q, self.exp_mult, self.execution
            )
            if self.largest_step is not None:
                moved = jnp.clip(moved, -self.largest_step, self.largest_step)
            return -self.step_mult * moved, state

        return tensors.transformation(
            self._init_tensor,
            move,
            specs,
            self.rules.step_scale,
            self.factored_axes,
        )

    def learned_decays(self, theta: Theta) -> dict[str, jax.Array]:
        """Returns the learned decays, `[K]` each, by accumulator."""
        return {
            name: 1.0 - value
            for name, value in self._complements(theta)._asdict().items()
        }

    def features(self, theta: Theta, state: RuleState, grads: Any, params: Any) -> Any:
        """Returns the network's inputs in the next update, `[*S, F]` for each tensor.

        They are in the order of `feature_names`; `S` is the shape in which the rule
        sees the tensor. Parameters stacked by `nn.scan` are not supported.
        """
        complements = self._complements(theta)

        def one(grad: jax.Array, param: jax.Array, tensor: TensorState) -> jax.Array:
            dtype, shape = tensor.momentum.dtype, tensor.momentum.shape[1:]
            grad, param = (jnp.reshape(x, shape).astype(dtype) for x in (grad, param))
            tensor = accumulators.update(tensor, grad, complements, self.epsilons)
            q = Quantities(grad, param, tensor, state.step, self.epsilons)
            return features.all_features(features.SMALL_FC, q)

        return jax.tree.map(one, grads, params, state.tensors)

    def _complements(self, theta: Theta) -> Complements:
        return Complements(
            accumulators.complement(self.momentum_decays, theta["momentum_offsets"]),
            accumulators.complement(
                (self.second_moment_decay,), theta["second_moment_offsets"]
            ),
            accumulators.complement(self.factored_decays, theta["factored_offsets"]),
        )

    def _layers(self, theta: Theta) -> dict[str, dict[str, jax.Array]]:
        names = [f"layer_{i}" for i in range(self.hidden_layers + 1)]
        return {name: theta[name] for name in names}

    def _init_tensor(self, like: Blank) -> TensorState:
        return accumulators.init(like, len(self.momentum_decays))
