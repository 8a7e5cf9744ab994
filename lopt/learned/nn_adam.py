"""NNAdam: Adam whose learning rate, decays and ε are moved by a per-tensor LSTM.

After every step the LSTM sees a tensor's statistics (of parameters, gradients and
moments) and hyperparameters, and moves the hyperparameters by a small amount in the
space of 0.1·ln(learning rate), 0.1·ln(1 − β) and 0.1·ln(ε). The step is

    learning rate·(1 + ε)·m/(ε + √(v + 10⁻¹⁰)),

Adam without bias correction where ε is small, momentum where it is large. Tensors share
the LSTM's weights and no information.

References:
    `NNAdam` of google/learned_optimization.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration, later
from lopt import checks, dense, tensors
from lopt.base import NumSteps, Specs, Theta, Transform
from lopt.clipping import GRADIENT_BOUND
from lopt.per_tensor import lstm, statistics
from lopt.per_tensor.lstm import LSTMState
from lopt.placement import Blank, under_any_mesh, vary
from lopt.tensors import Arrangement, need
from parametrization.rules import STANDARD, Rules

HYPERPARAMETERS = ("learning_rate", "b1", "b2", "epsilon")
"""Columns of the hyperparameters, in order."""
FEATURES = 19
"""Inputs of the LSTM."""

# Bounds of the hyperparameters, in the space in which they are learned.
_LOWEST = (0.1 * math.log(1e-8), -1.0, -1.0, 0.1 * math.log(1e-11))
_HIGHEST = (0.1 * math.log(1e3), 0.0, 0.0, 0.1 * math.log(1e4))


class Moments(NamedTuple):
    """Averages of one tensor of shape `S`."""

    momentum: jax.Array  # [*S]
    second_moment: jax.Array  # [*S]


class NNAdamState(NamedTuple):
    """State of the transformation; a row for each of R tensors."""

    step: jax.Array  # [] int32, updates done
    moments: Any  # tree of Moments, parallel to the parameters
    hyperparameters: jax.Array  # [R, 4], in the space in which they are learned
    lstm: LSTMState  # [R, H]


@configuration
class NNAdam:
    """Adam with hyperparameters moved by a per-tensor LSTM."""

    hidden_size: int = 32
    """Units of the LSTM."""
    output_scale: float = 0.01
    """Scale of the hyperparameters' change in a step."""
    initial_learning_rate: float = 1e-4
    """Learning rate of `init`'s θ, with which every tensor begins."""
    initial_b1: float = 0.9
    """Decay of the momentum in `init`'s θ."""
    initial_b2: float = 0.999
    """Decay of the second moment in `init`'s θ."""
    initial_epsilon: float = 1e-8
    """ε of `init`'s θ."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP) or STANDARD; gradients are
    brought to the base model's size, as in `lopt.baselines.Adam`."""
    decay_strength: float = later(0.0)
    """Share of the way back to θ's hyperparameters that is taken in each step, in the
    space in which they are learned; 0 does not pull them back."""

    def __post_init__(self) -> None:
        checks.positive_integer(self, "hidden_size")
        checks.within(self, "output_scale", -1e3, 1e3)
        checks.within(self, "initial_learning_rate", 1e-8, 1e3)
        checks.within(self, "initial_epsilon", 1e-11, 1e4)
        checks.within(self, "initial_b1", 0.0, 1.0 - math.exp(-10.0))
        checks.within(self, "initial_b2", 0.0, 1.0 - math.exp(-10.0))
        checks.within(self, "decay_strength", 0.0, 1.0)
        checks.step_rules(self.rules)

    def init(self, key: jax.Array) -> Theta:
        """Draws the LSTM; the layer from it to the hyperparameters' changes is zero.

        Returns:
            `{"lstm": (see `lstm.init`), "controls": {"kernel": [H, 4], "bias": [4]},
            "hyperparameters": {"learning_rate", "b1", "b2", "epsilon": []}}`.
        """
        starts = (
            math.log(self.initial_learning_rate),
            math.log(1.0 - self.initial_b1),
            math.log(1.0 - self.initial_b2),
            math.log(self.initial_epsilon),
        )
        return {
            "lstm": lstm.init(key, FEATURES, self.hidden_size),
            "controls": dense.init(key, self.hidden_size, 4, scale=0.0),
            "hyperparameters": {
                name: jnp.float32(0.1 * start)
                for name, start in zip(HYPERPARAMETERS, starts, strict=True)
            },
        }

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer; `num_steps` is not used."""
        del num_steps

        def init(params: optax.Params) -> NNAdamState:
            return _initial_state(theta, params, specs)

        def update(
            updates: optax.Updates,
            state: NNAdamState,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, NNAdamState]:
            del extra_args
            params = need(params, "NNAdam")
            arrangement = Arrangement(updates, params, specs)
            if not arrangement.groups:
                return updates, state._replace(step=state.step + 1)
            return self._update(theta, arrangement, updates, state, params)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def _update(
        self,
        theta: Theta,
        arrangement: Arrangement,
        updates: optax.Updates,
        state: NNAdamState,
        params: optax.Params,
    ) -> tuple[optax.Updates, NNAdamState]:
        moved = [
            tensors.over(_move, *stacks)
            for stacks in zip(
                arrangement.stack(updates),
                arrangement.stack(params),
                arrangement.stack_states(state.moments),
                arrangement.split(state.hyperparameters),
                arrangement.each(self.rules.gradient_scale),
                arrangement.each(self.rules.step_scale),
                arrangement.each(statistics.rank),
                strict=True,
            )
        ]
        features = jnp.concatenate([rows for _, _, rows in moved])
        outputs, memory = lstm.apply(theta["lstm"], features, state.lstm)
        change = self.output_scale * dense.apply(theta["controls"], outputs)
        learned = state.hyperparameters + change
        if self.decay_strength:
            learned = learned - self.decay_strength * (learned - _start(theta))
        moments = [new for _, new, _ in moved]
        new_state = NNAdamState(
            step=state.step + 1,
            moments=arrangement.unstack_states(moments, state.moments),
            hyperparameters=_kept(learned),
            lstm=memory,
        )
        return arrangement.unstack([step for step, _, _ in moved]), new_state


class Hyperparameters(NamedTuple):
    """Hyperparameters of a step, `[...]` each; 1 − β keeps digits that β loses."""

    learning_rate: jax.Array
    b1_complement: jax.Array  # 1 − β₁
    b2_complement: jax.Array  # 1 − β₂
    epsilon: jax.Array


def hyperparameters(learned: jax.Array) -> Hyperparameters:
    """Returns the hyperparameters from their learned form `[..., 4]`."""
    return Hyperparameters(*jnp.moveaxis(jnp.exp(10.0 * _kept(learned)), -1, 0))


def _start(theta: Theta) -> jax.Array:
    """Returns θ's hyperparameters in their learned form, `[1, 4]`."""
    values = [theta["hyperparameters"][name] for name in HYPERPARAMETERS]
    return jnp.stack(values)[None]


def _initial_state(theta: Theta, params: optax.Params, specs: Specs) -> NNAdamState:
    rows = Arrangement(params, params, specs).num_tensors

    def empty(like: Blank) -> Moments:
        return Moments(like.zeros(), like.zeros())

    return NNAdamState(
        step=jnp.zeros([], jnp.int32),
        moments=tensors.init_states(params, specs, empty),
        hyperparameters=vary(jnp.broadcast_to(_start(theta), (rows, 4)), params),
        lstm=vary(lstm.initial_state(theta["lstm"], rows), params),
    )


def _move(
    grad: jax.Array,
    param: jax.Array,
    old: Moments,
    learned: jax.Array,
    gradient_scale: jax.Array,
    step_scale: jax.Array,
    rank: jax.Array,
) -> tuple[jax.Array, Moments, jax.Array]:
    """Returns step `[*S]`, moments and LSTM inputs `[19]` of one tensor."""
    grad = jnp.clip(grad / gradient_scale, -GRADIENT_BOUND, GRADIENT_BOUND)
    rate, c1, c2, epsilon = (x.astype(grad.dtype) for x in hyperparameters(learned))
    m = (1.0 - c1) * old.momentum + c1 * grad
    v = (1.0 - c2) * old.second_moment + c2 * grad * grad
    step = rate * (1.0 + epsilon) / (epsilon + jnp.sqrt(v + 1e-10)) * m
    return (
        -step_scale * step,
        Moments(m, v),
        _features(param, grad, m, v, learned, rank),
    )


def _features(
    param: jax.Array,
    grad: jax.Array,
    m: jax.Array,
    v: jax.Array,
    learned: jax.Array,
    rank: jax.Array,
) -> jax.Array:
    """Returns the LSTM's inputs `[19]`, named and ordered as in the original.

    There `v` is called rms.
    """

    def magnitude(x: jax.Array) -> jax.Array:
        return 0.5 * statistics.log_magnitude(x)

    rate, b1, b2, epsilon = 0.2 * jnp.clip(learned, -5.0, 5.0)
    features = {
        "beta1": b1,
        "beta2": b2,
        "epsilon": epsilon,
        "is_bias": jnp.where(rank == 1, 1.0, -1.0),
        "is_scalar": jnp.where(rank == 0, 1.0, -1.0),
        "lr": rate,
        "mean_gabs_mag": magnitude(jnp.mean(jnp.abs(grad))),
        "mean_rms": magnitude(jnp.mean(v)),
        "mean_sign": jnp.sign(jnp.mean(v)),
        "var_rms": magnitude(statistics.variance(v)),
    }
    for name, x in (("p", param), ("g", grad), ("m", m)):
        features[f"mean_{name}_mag"] = magnitude(jnp.mean(x))
        features[f"mean_{name}_sign"] = jnp.sign(jnp.mean(x))
        features[f"var_{name}"] = magnitude(statistics.variance(x))
    return statistics.join(features, learned.dtype)


def _kept(learned: jax.Array) -> jax.Array:
    """Clips learned hyperparameters `[..., 4]` to their bounds."""
    low, high = (
        jnp.broadcast_to(jnp.asarray(bound, learned.dtype), learned.shape)
        for bound in (_LOWEST, _HIGHEST)
    )
    return jnp.clip(learned, low, high)
