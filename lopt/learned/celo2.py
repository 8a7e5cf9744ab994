"""CELO2: a learned direction for matrices; rate, schedule and decay are the user's.

A small network of VeLO's features gives each element a direction. The matrix of
directions is orthogonalized (CELO2) or not (CELO2-base) and divided by its root mean
square, so every matrix moves by the learning rate per element and step: rate, schedule
and weight decay mean what they mean in AdamW. Vectors, scalars and embeddings are moved
by Adam, at a rate of its own.

The role of a tensor follows from its `ParamSpec`. A kernel of several axes is a matrix
from all inputs to all outputs; positions of a convolution are as many matrices, each
normalized by itself, as in the original.

In μP steps of CELO2-base are scaled as Adam's, orthogonalized ones by
`Rules.orthogonal_step_scale`.

References:
    Moudgil et al., Celo2, arXiv:2602.19142.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration, later
from lopt import checks, tensors
from lopt.base import NumSteps, Specs, Theta, Transform, map_with_specs
from lopt.baselines.links import (
    add_decayed_weights,
    in_float32,
    scale_by_specs,
    unscale_gradients,
)
from lopt.clipping import GRADIENT_BOUND, clip_global_norm
from lopt.matrices import is_matrix, matrix_spec, newton_schulz, on_matrices
from lopt.per_parameter import accumulators, features
from lopt.per_parameter import network as per_parameter_mlp
from lopt.per_parameter.accumulators import Complements, TensorState
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.features import Counts, Quantities
from lopt.per_parameter.forms import Execution
from lopt.placement import Blank, under_any_mesh
from lopt.schedules import RateField, ScheduleField, check_rate, rate_of
from parametrization.rules import STANDARD, Rules
from parametrization.spec import ParamSpec

FLOORS = Epsilons(normalizer=1e-9, second_moment=1e-8, one_dimensional=1e-37)
"""The floors of the original."""

OUTPUT_FLOOR = 1e-9
"""Added to the mean square by which a step is normalized."""


@configuration
class Celo2:
    """The learned optimizer CELO2; with `orthogonalize=False`, CELO2-base."""

    learning_rate: RateField = 1e-3
    """Root mean square of a matrix's step; may be traced."""
    schedule: ScheduleField = "constant"
    """Learning-rate schedule: constant, cosine, one of `lopt.schedules`, or an optax
    schedule, which is the rate itself."""
    weight_decay: float = 0.0
    """Decoupled weight decay, times the rate of the role but not μP's step scale."""
    clip_norm: float | None = None
    """Bound of the norm over all gradients; None does not clip."""
    orthogonalize: bool = True
    """Whether directions pass through Newton–Schulz."""
    adam_mult: float = 20.0
    """Learning rate of vectors and embeddings over that of matrices."""
    adam_decays: tuple[float, float] = (0.9, 0.95)
    """Decays of Adam's momentum and second moment."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    bias_corrected: bool = False
    """Whether Adam clips gradients, corrects its averages' bias and adds epsilon to the
    root, as PyLO's does; the original's adds it to the second moment."""
    hidden_size: int = 8
    """Units of each hidden layer of the network."""
    hidden_layers: int = 2
    """Hidden layers of the network."""
    exp_mult: float = 0.0
    """Scale of the learned log-magnitude of an element; unused by the original."""
    output_scale: float = 1.0
    """Factor on the last layer at initialization."""
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta; no decay is learned."""
    second_moment_decay: float = 0.95
    """Decay of the second moment."""
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the factored second moments, as many as momenta."""
    epsilons: Epsilons = FLOORS
    """Floors inside the features."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP) or STANDARD."""
    execution: Execution = later(Execution())
    """Execution of the per-parameter network."""
    NOT_STORED: ClassVar[tuple[str, ...]] = ("output_scale", "execution")
    """Fields that are no property of trained weights."""

    def __post_init__(self) -> None:
        check_rate(self)
        checks.positive(self, "adam_mult", "adam_eps")
        checks.positive_integer(self, "hidden_size", "hidden_layers")
        if self.clip_norm is not None:
            checks.positive(self, "clip_norm")
        checks.within(self, "weight_decay", 0.0, 1e3)
        checks.within(self, "exp_mult", -1e3, 1e3)
        checks.within(self, "output_scale", -1e3, 1e3)
        checks.decays(self, "adam_decays", "momentum_decays", "second_moment_decay")
        checks.decays(self, "factored_decays")
        checks.as_many(self, "factored_decays", "momentum_decays")
        checks.step_rules(self.rules)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the network's inputs, in order."""
        return features.VELO.names(self._counts)

    def init(self, key: jax.Array) -> Theta:
        """Draws the weights `{"layer_i": {"kernel", "bias"}}`, of three outputs.

        The third, and without `exp_mult` the second, is unused: released weights fit.
        """
        sizes = (len(self.feature_names), self.hidden_size, self.hidden_layers, 3)
        return per_parameter_mlp.init(key, *sizes, self.output_scale)

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        schedule = rate_of(self, num_steps)

        def move(
            grad: jax.Array, param: jax.Array, state: TensorState, step: jax.Array
        ) -> tuple[jax.Array, TensorState]:
            del step
            state, q = self._accumulate(state, grad, param)
            return self._direction(theta, q), state

        rule = tensors.transformation(
            self._init_tensor,
            move,
            jax.tree.map(lambda s: matrix_spec(s) if is_matrix(s) else s, specs),
            self._scale,
        )
        decay = add_decayed_weights(self.weight_decay)
        by_role = optax.multi_transform(
            {
                "matrix": optax.chain(on_matrices(rule, specs), *decay),
                "other": optax.chain(
                    self._adam(specs), *decay, optax.scale(self.adam_mult)
                ),
            },
            lambda tree: map_with_specs(_label, tree, specs),
        )
        steps = optax.scale_by_learning_rate(schedule)
        return in_float32(optax.chain(clip_global_norm(self.clip_norm), by_role, steps))

    @property
    def _counts(self) -> Counts:
        return Counts(len(self.momentum_decays), 1, len(self.factored_decays))

    def _init_tensor(self, like: Blank) -> TensorState:
        return accumulators.init(like, len(self.momentum_decays))

    def _accumulate(
        self, state: TensorState, grad: jax.Array, param: jax.Array
    ) -> tuple[TensorState, Quantities]:
        dtype = state.momentum.dtype
        complements = Complements(
            accumulators.fixed(self.momentum_decays, dtype),
            accumulators.fixed((self.second_moment_decay,), dtype),
            accumulators.fixed(self.factored_decays, dtype),
        )
        grad = jnp.clip(grad, -GRADIENT_BOUND, GRADIENT_BOUND)
        state = accumulators.update(state, grad, complements, self.epsilons)
        never = jnp.zeros([], jnp.int32)  # no feature depends on time
        return state, Quantities(grad, param, state, never, self.epsilons)

    def _direction(self, theta: Theta, q: Quantities) -> jax.Array:
        """Returns the step of a matrix, with a root mean square of 1."""
        step = per_parameter_mlp.displacement(
            theta, features.VELO, q, self.exp_mult, self.execution
        )
        if self.orthogonalize:
            step = newton_schulz(step)
        return step * jax.lax.rsqrt(jnp.mean(step * step) + OUTPUT_FLOOR)

    def _scale(self, spec: ParamSpec) -> float:
        if self.orthogonalize:
            return self.rules.orthogonal_step_scale(spec)
        return self.rules.step_scale(spec)

    def _adam(self, specs: Specs) -> optax.GradientTransformation:
        b1, b2 = self.adam_decays
        if self.bias_corrected:
            adam = optax.chain(
                optax.clip(GRADIENT_BOUND), optax.scale_by_adam(b1, b2, self.adam_eps)
            )
        else:
            adam = _uncorrected_adam(b1, b2, self.adam_eps)
        return optax.chain(
            unscale_gradients(specs, self.rules),
            adam,
            scale_by_specs(specs, self.rules),
        )


def _label(_: Any, spec: ParamSpec) -> str:
    return "matrix" if is_matrix(spec) else "other"


def _uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction, epsilon added to the second moment."""

    def init(params: optax.Params) -> tuple[Any, Any]:
        return optax.tree.zeros_like(params), optax.tree.zeros_like(params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        m, v = state
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, updates)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, v, updates)
        steps = jax.tree.map(lambda m, v: m * jax.lax.rsqrt(v + eps), m, v)
        return steps, (m, v)

    return optax.GradientTransformation(init, update)
