"""NNAdam: Adam whose learning rate, decays and ε are moved by a per-tensor LSTM.

After every step the LSTM looks at a tensor (mean and spread of its parameters,
gradients and moments, and the hyperparameters themselves) and moves the four
hyperparameters by a small amount. They live in a space where that amount is relative:
0.1·ln of the learning rate and of ε, 0.1·ln(1 − β) of a decay. The step is

    learning rate·(1 + ε)·m/(ε + √(v + 10⁻¹⁰)),

Adam without bias correction where ε is small, momentum where it is large; without the
factor 1 + ε a large ε would need a large learning rate to balance it.

All tensors share the LSTM's weights, but no tensor sees another: a gradient that is not
a number spoils its own tensor only.

References:
    `NNAdam` of google/learned_optimization.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt import dense, lstm
from lopt import tensor_statistics as statistics
from lopt.base import Specs, Theta
from lopt.lstm import LSTMState
from lopt.tensor_stack import Tensors, TensorStack, spread, wide
from parametrization.rules import ADAM_LIKE, COMPLETEP, STANDARD, Rules

HYPERPARAMETERS = ("learning_rate", "b1", "b2", "epsilon")
"""Columns of the hyperparameters, in order."""
FEATURES = 19
"""Inputs of the LSTM."""
GRADIENT_BOUND = 1000.0
"""Gradients are clipped to ± this, entry by entry."""

# Where the hyperparameters may go, in the space in which they are learned.
_LOWEST = (0.1 * math.log(1e-8), -1.0, -1.0, 0.1 * math.log(1e-11))
_HIGHEST = (0.1 * math.log(1e3), 0.0, 0.0, 0.1 * math.log(1e4))


class Moments(NamedTuple):
    """Averages of one leaf, shaped like it."""

    momentum: jax.Array  # [*shape]
    second_moment: jax.Array  # [*shape]


class NNAdamState(NamedTuple):
    """State of the transformation; R tensors have rows (see `tensor_stack`)."""

    step: jax.Array  # [] int32, updates done
    moments: Any  # tree of Moments, parallel to the parameters
    hyperparameters: jax.Array  # [R, 4], in the space in which they are learned
    lstm: LSTMState  # [R, H]


@dataclasses.dataclass(frozen=True)
class NNAdam:
    """Adam with hyperparameters moved by a per-tensor LSTM."""

    hidden_size: int = 32
    """Units of the LSTM."""
    output_scale: float = 0.01
    """Scale of what the LSTM adds to the hyperparameters in a step."""
    initial_learning_rate: float = 1e-4
    """Learning rate of `init`'s θ, where every tensor begins."""
    initial_b1: float = 0.9
    """Decay of the momentum in `init`'s θ."""
    initial_b2: float = 0.999
    """Decay of the second moment in `init`'s θ."""
    initial_epsilon: float = 1e-8
    """ε of `init`'s θ."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP), COMPLETEP or STANDARD."""

    def __post_init__(self) -> None:
        if not isinstance(self.hidden_size, int) or self.hidden_size < 1:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a positive whole number"
            )
        if not abs(self.output_scale) <= 1e3:
            raise ValueError(
                f"output_scale = {self.output_scale} must lie in [-1000, 1000]"
            )
        for name, low, high in (
            ("initial_learning_rate", 1e-8, 1e3),
            ("initial_epsilon", 1e-11, 1e4),
            ("initial_b1", 0.0, 1.0 - math.exp(-10.0)),
            ("initial_b2", 0.0, 1.0 - math.exp(-10.0)),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name} = {getattr(self, name)} must lie in [{low:.6g}, "
                    f"{high:.6g}], where this rule keeps it"
                )
        if self.rules not in (STANDARD, ADAM_LIKE, COMPLETEP):
            raise ValueError(
                f"rules = {self.rules!r} must be STANDARD, ADAM_LIKE or COMPLETEP"
            )

    def init(self, key: jax.Array) -> Theta:
        """θ: LSTM, a layer from it to the four changes (zero), and where they start.

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

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that θ describes (see `LearnedOptimizer.as_optax`).

        `num_steps` is not used: this rule does not know the end of the run.
        """
        del num_steps

        def init(params: optax.Params) -> NNAdamState:
            return _initial_state(theta, TensorStack.of(params, specs), params)

        def update(
            updates: optax.Updates,
            state: NNAdamState,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, NNAdamState]:
            del extra_args
            if params is None:
                raise ValueError("NNAdam needs params: update(grads, state, params)")
            stack = TensorStack.of(updates, specs)
            if not stack.tensors:
                return updates, state._replace(step=state.step + 1)
            return self._update(theta, stack, updates, state, params)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def _update(
        self,
        theta: Theta,
        stack: TensorStack,
        updates: optax.Updates,
        state: NNAdamState,
        params: optax.Params,
    ) -> tuple[optax.Updates, NNAdamState]:
        steps, moments, features = [], [], []
        leaves = zip(
            stack.tensors,
            stack.gradients(updates, self.rules),
            stack.arrays(params),
            stack.select(state.moments),
            stack.split(state.hyperparameters),
            strict=True,
        )
        for tensor, grad, param, old, learned in leaves:
            grad = jnp.clip(grad, -GRADIENT_BOUND, GRADIENT_BOUND)
            m, v, step = _adam(grad, old, hyperparameters(learned))
            steps.append(step)
            moments.append(
                Moments(m.reshape(tensor.spec.shape), v.reshape(tensor.spec.shape))
            )
            features.append(_features(tensor, param, grad, m, v, learned))
        rows = jnp.concatenate(features).astype(state.hyperparameters.dtype)
        outputs, memory = lstm.apply(theta["lstm"], rows, state.lstm)
        change = self.output_scale * dense.apply(theta["controls"], outputs)
        new_state = NNAdamState(
            step=state.step + 1,
            moments=stack.replace(state.moments, moments),
            hyperparameters=_kept(state.hyperparameters + change),
            lstm=memory,
        )
        return stack.updates(params, steps, self.rules), new_state


class Hyperparameters(NamedTuple):
    """What the step is made with, `[n]` each."""

    learning_rate: jax.Array
    b1_complement: jax.Array  # 1 − β1
    b2_complement: jax.Array  # 1 − β2
    epsilon: jax.Array


def hyperparameters(learned: jax.Array) -> Hyperparameters:
    """The hyperparameters from their learned form `[n, 4]`.

    Decays by their complements: 1 − β loses digits when β is near 1.
    """
    return Hyperparameters(*jnp.moveaxis(jnp.exp(10.0 * _kept(learned)), -1, 0))


def _initial_state(
    theta: Theta, stack: TensorStack, params: optax.Params
) -> NNAdamState:
    start = jnp.stack([theta["hyperparameters"][name] for name in HYPERPARAMETERS])
    moments = jax.tree.map(
        lambda p: Moments(*2 * (jnp.zeros_like(p, dtype=wide(p)),)), params
    )
    return NNAdamState(
        step=jnp.zeros([], jnp.int32),
        moments=moments,
        hyperparameters=jnp.broadcast_to(start[None], (stack.num_rows, 4)),
        lstm=lstm.initial_state(theta["lstm"], stack.num_rows),
    )


def _adam(
    grad: jax.Array, old: Moments, values: Hyperparameters
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """New momentum, new second moment, and the step, `[n, *S]` each."""
    rate, c1, c2, epsilon = (spread(x.astype(grad.dtype), grad) for x in values)
    m = (1.0 - c1) * old.momentum.reshape(grad.shape) + c1 * grad
    v = (1.0 - c2) * old.second_moment.reshape(grad.shape) + c2 * grad * grad
    return m, v, rate * (1.0 + epsilon) / (epsilon + jnp.sqrt(v + 1e-10)) * m


def _features(
    tensor: Tensors,
    param: jax.Array,
    grad: jax.Array,
    m: jax.Array,
    v: jax.Array,
    learned: jax.Array,
) -> jax.Array:
    """Inputs of the LSTM `[n, 19]`: those of `NNAdam` in google/learned_optimization.

    `v` is called rms there; they stand in the order of their names there.
    """

    def magnitude(x: jax.Array) -> jax.Array:
        return 0.5 * statistics.log_magnitude(x)

    def flag(rank: int) -> jax.Array:
        return jnp.full([tensor.count], 1.0 if len(tensor.shape) == rank else -1.0)

    means = {
        name: statistics.mean(x)
        for name, x in {"p": param, "g": grad, "m": m, "rms": v}.items()
    }
    rate, b1, b2, epsilon = jnp.moveaxis(0.2 * jnp.clip(learned, -5.0, 5.0), -1, 0)
    features = {
        "beta1": b1,
        "beta2": b2,
        "epsilon": epsilon,
        "is_bias": flag(1),
        "is_scalar": flag(0),
        "lr": rate,
        "mean_gabs_mag": magnitude(statistics.mean(jnp.abs(grad))),
        "mean_rms": magnitude(means["rms"]),
        "mean_sign": jnp.sign(means["rms"]),
        "var_rms": magnitude(statistics.variance(v)),
    }
    for name, x in (("p", param), ("g", grad), ("m", m)):
        features[f"mean_{name}_mag"] = magnitude(means[name])
        features[f"mean_{name}_sign"] = jnp.sign(means[name])
        features[f"var_{name}"] = magnitude(statistics.variance(x))
    return statistics.stack_features(features)


def _kept(learned: jax.Array) -> jax.Array:
    """Learned hyperparameters `[R, 4]` inside the bounds of this rule."""
    low, high = (
        jnp.broadcast_to(jnp.asarray(bound, learned.dtype)[None], learned.shape)
        for bound in (_LOWEST, _HIGHEST)
    )
    return jnp.clip(learned, low, high)
