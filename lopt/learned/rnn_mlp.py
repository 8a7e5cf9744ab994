"""RNN-MLP: a small network for every parameter, guided by an LSTM for every tensor.

The LSTM sees a tensor's statistics, shape and the loss; it gives the per-parameter
network 17 inputs that are the same for the whole tensor. The network reports 16 numbers
per parameter, whose mean the LSTM sees in the next step; the LSTM reports 18 numbers
per tensor, whose mean over all tensors every tensor sees in the next step. A parameter
moves by `−direction·exp(magnitude·exp_mult)·step_mult`.

Gradients are clipped to ten times a running average of their size over all tensors
(`clipping.bounded`, so an infinite gradient never reaches another tensor).

References:
    Metz et al., Tasks, stability, architecture, and compute: training more effective
    learned optimizers, arXiv:2009.11243; `RNNMLPLOpt` of google/learned_optimization.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration, later
from lopt import checks, clipping, dense, tensors
from lopt.base import NumSteps, Specs, Theta, Transform, need_loss
from lopt.per_parameter import accumulators
from lopt.per_parameter import network as per_parameter_mlp
from lopt.per_parameter.accumulators import Complements, TensorState
from lopt.per_parameter.epsilons import PAPER, Epsilons
from lopt.per_parameter.features import (
    GRADIENT,
    MOMENTUM,
    NORMALIZED_MOMENTUM,
    PARAMETER,
    RECIPROCAL_ROOT,
    SECOND_MOMENT,
    TIME_SCALES,
    Feature,
    FeatureSet,
    Quantities,
)
from lopt.per_parameter.forms import Execution
from lopt.per_tensor import loss_normalizer, lstm, statistics
from lopt.per_tensor.loss_normalizer import LossAverages
from lopt.per_tensor.lstm import LSTMState
from lopt.placement import Blank, under_any_mesh, vary
from lopt.tensors import Arrangement, need
from parametrization.rules import STANDARD, Rules

ELEMENTS = FeatureSet(
    (
        GRADIENT,
        PARAMETER,
        Feature(
            "log_parameter",
            "element",
            lambda q, _: jnp.log(jnp.abs(q.param) + 1e-8)[None],
        ),
        *(MOMENTUM, SECOND_MOMENT, NORMALIZED_MOMENTUM, RECIPROCAL_ROOT),
    )
)
"""Elementwise inputs of the network: 23 with five decays."""
TRAIN_LOSS_DECAY, VALID_LOSS_DECAY = 0.9, 0.95
CLIP_DECAY, CLIP_MULT = 0.99, 10.0
TENSOR_FEATURES = 18
"""Inputs of the LSTM besides the two reports."""


class Clip(NamedTuple):
    """Running average of the root mean square gradient, before bias correction."""

    step: jax.Array  # [] float, one more than clips done
    average: jax.Array  # []


class RNNMLPState(NamedTuple):
    """State of the transformation; a row for each of R tensors."""

    step: jax.Array  # [] int32, updates done, validation losses counted
    moments: Any  # tree of TensorState, parallel to the parameters
    lstm: LSTMState  # [R, H]
    from_network: jax.Array  # [R, 16]
    from_tensors: jax.Array  # [18]
    train_loss: LossAverages
    valid_loss: LossAverages
    clip: Clip


@configuration
class RNNMLP:
    """The learned optimizer RNN-MLP; its update takes the loss.

    It also takes the keyword `valid_loss`, `[]`, a validation loss, which counts as a
    step of its own; None or NaN is none.
    """

    step_mult: float = 0.001
    """Scale of a step."""
    exp_mult: float = 0.001
    """Scale of the learned log-magnitude of a step."""
    hidden_size: int = 32
    """Units of each hidden layer of the per-parameter network."""
    hidden_layers: int = 2
    """Hidden layers of the per-parameter network."""
    network_to_lstm: int = 16
    """Numbers that the network reports to the LSTM."""
    lstm_to_lstm: int = 18
    """Numbers that the LSTM reports to all tensors."""
    lstm_to_network: int = 17
    """Numbers that the LSTM gives to its tensor's network."""
    lstm_size: int = 64
    """Units of the LSTM."""
    decays: tuple[float, ...] = (0.5, 0.9, 0.99, 0.999, 0.9999)
    """Decays of momenta and second moments."""
    output_scale: float = 1.0
    """Factor on the network's last layer at initialization; at 0 no step is taken."""
    epsilons: Epsilons = PAPER
    """Floors inside the features; only `normalizer` and `second_moment` are used."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP) or STANDARD; gradients are
    brought to the base model's size, as in `lopt.baselines.Adam`."""
    execution: Execution = later(Execution())
    """Execution of the per-parameter network; its form is always plain."""
    NOT_STORED: ClassVar[tuple[str, ...]] = ("output_scale", "execution")
    """Fields that are no property of trained weights."""

    def __post_init__(self) -> None:
        checks.network(self)
        checks.positive_integer(
            self, "network_to_lstm", "lstm_to_lstm", "lstm_to_network", "lstm_size"
        )
        checks.decays(self, "decays")
        checks.step_rules(self.rules)

    @property
    def network_inputs(self) -> int:
        """Number of the per-parameter network's inputs: elementwise, then shared."""
        element = 3 + 4 * len(self.decays)
        return element + len(TIME_SCALES) + 3 + self.lstm_to_network

    def init(self, key: jax.Array) -> Theta:
        """Draws the LSTM, its two readouts, the network, and the first reports.

        Returns:
            `{"lstm": (see `lstm.init`), "to_network", "to_tensors", "layer_i":
            {"kernel", "bias"}, "from_network": [16], "from_tensors": [18]}`.
        """
        keys = iter(jax.random.split(key, 5 + self.hidden_layers + 1))
        sizes = [self.network_inputs, *[self.hidden_size] * self.hidden_layers]
        sizes.append(2 + self.network_to_lstm)
        inputs = TENSOR_FEATURES + self.lstm_to_lstm + self.network_to_lstm
        layers = {
            f"layer_{i}": dense.init(
                next(keys),
                sizes[i],
                sizes[i + 1],
                self.output_scale if i == self.hidden_layers else 1.0,
            )
            for i in range(self.hidden_layers + 1)
        }
        return {
            **layers,
            "lstm": lstm.init(next(keys), inputs, self.lstm_size),
            "to_network": dense.init(next(keys), self.lstm_size, self.lstm_to_network),
            "to_tensors": dense.init(next(keys), self.lstm_size, self.lstm_to_lstm),
            "from_network": _start(next(keys), self.network_to_lstm),
            "from_tensors": _start(next(keys), self.lstm_to_lstm),
        }

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer; `num_steps` is not used."""
        del num_steps

        def init(params: optax.Params) -> RNNMLPState:
            return self._initial_state(theta, params, specs)

        def update(
            updates: optax.Updates,
            state: RNNMLPState,
            params: optax.Params | None = None,
            *,
            loss: jax.typing.ArrayLike | None = None,
            value: jax.typing.ArrayLike | None = None,
            valid_loss: jax.typing.ArrayLike | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, RNNMLPState]:
            del extra_args
            params = need(params, "RNNMLP")
            loss = need_loss(loss, value, "RNNMLP")
            arrangement = Arrangement(updates, params, specs)
            if not arrangement.groups:
                return updates, state._replace(step=state.step + 1)
            if valid_loss is not None:
                state = _with_valid_loss(state, valid_loss)
            return self._update(theta, arrangement, updates, state, params, loss)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def _initial_state(
        self, theta: Theta, params: optax.Params, specs: Specs
    ) -> RNNMLPState:
        rows = Arrangement(params, params, specs).num_tensors
        decays = len(self.decays)

        def empty(like: Blank) -> TensorState:
            return accumulators.init(like, decays, decays, num_factored=0)

        start = jnp.asarray(theta["from_network"])
        dtype = tensors.accumulator_dtype(start)
        state = RNNMLPState(
            step=jnp.zeros([], jnp.int32),
            moments=None,
            lstm=lstm.initial_state(theta["lstm"], rows),
            from_network=jnp.broadcast_to(start[None], (rows, *start.shape)),
            from_tensors=jnp.array(theta["from_tensors"]),
            train_loss=loss_normalizer.init(dtype),
            valid_loss=loss_normalizer.init(dtype),
            clip=Clip(jnp.ones([], dtype), jnp.asarray(1.0 - CLIP_DECAY, dtype)),
        )
        state = vary(state, params)
        return state._replace(moments=tensors.init_states(params, specs, empty))

    def _update(
        self,
        theta: Theta,
        arrangement: Arrangement,
        updates: optax.Updates,
        state: RNNMLPState,
        params: optax.Params,
        loss: jax.typing.ArrayLike,
    ) -> tuple[optax.Updates, RNNMLPState]:
        scales = arrangement.each(self.rules.gradient_scale)
        clip, grads = _clipped(state.clip, arrangement.stack(updates), scales)
        values = arrangement.stack(params)
        moments = [
            tensors.over(self._average, *stacks)
            for stacks in zip(
                arrangement.stack_states(state.moments), grads, strict=True
            )
        ]
        outputs, memory, train_loss = self._look(
            theta, arrangement, state, (values, grads, moments), loss
        )
        shared = arrangement.split(dense.apply(theta["to_network"], outputs))
        move = self._mover(theta, state.step, arrangement.num_tensors)
        step_scales = arrangement.each(self.rules.step_scale)
        moved = [
            tensors.over(move, *stacks)
            for stacks in zip(values, grads, moments, shared, step_scales, strict=True)
        ]
        new_state = RNNMLPState(
            step=state.step + 1,
            moments=arrangement.unstack_states(moments, state.moments),
            lstm=memory,
            from_network=jnp.concatenate([report for _, report in moved]),
            from_tensors=dense.apply(theta["to_tensors"], outputs).mean(0),
            train_loss=train_loss,
            valid_loss=state.valid_loss,
            clip=clip,
        )
        return arrangement.unstack([step for step, _ in moved]), new_state

    def _average(self, moments: TensorState, grad: jax.Array) -> TensorState:
        weights = accumulators.fixed(self.decays, grad.dtype)
        return accumulators.update(
            moments, grad, Complements(weights, weights), self.epsilons
        )

    def _look(
        self,
        theta: Theta,
        arrangement: Arrangement,
        state: RNNMLPState,
        stacks: tuple[list[Any], ...],
        loss: jax.typing.ArrayLike,
    ) -> tuple[jax.Array, LSTMState, LossAverages]:
        """Returns the LSTM's outputs `[R, H]` and memory, and averages of the loss."""
        train_loss = loss_normalizer.update(state.train_loss, loss, TRAIN_LOSS_DECAY)
        valid = loss_normalizer.mean(state.valid_loss, VALID_LOSS_DECAY)
        losses = [
            loss_normalizer.feature(train_loss, x, TRAIN_LOSS_DECAY)
            for x in (loss, valid)
        ]

        def look(
            value: jax.Array,
            grad: jax.Array,
            moments: TensorState,
            from_network: jax.Array,
            rank: jax.Array,
        ) -> jax.Array:
            features = _tensor_features(value, grad, moments, rank)
            features |= {
                "from_lstm": state.from_tensors,
                "from_mlp": from_network,
                "train_loss_feat": losses[0],
                "valid_loss_feat": losses[1],
            }
            return clipping.finite(statistics.join(features, from_network.dtype))

        stacks = (*stacks, arrangement.split(state.from_network))
        ranks = arrangement.each(statistics.rank)
        rows = [tensors.over(look, *x) for x in zip(*stacks, ranks, strict=True)]
        outputs, memory = lstm.apply(theta["lstm"], jnp.concatenate(rows), state.lstm)
        return outputs, memory, train_loss

    def _mover(
        self, theta: Theta, step: jax.Array, num_tensors: int
    ) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """Returns the rule: the step `[*S]` of one tensor and its report `[16]`."""
        names = [f"layer_{i}" for i in range(self.hidden_layers + 1)]
        layers = {name: theta[name] for name in names}

        def move(
            value: jax.Array,
            grad: jax.Array,
            moments: TensorState,
            from_lstm: jax.Array,
            step_scale: jax.Array,
        ) -> tuple[jax.Array, jax.Array]:
            shared = _shared_features(value, step, num_tensors, from_lstm)
            q = Quantities(grad, value, moments, step, self.epsilons)
            out = per_parameter_mlp.apply(
                _given(layers, shared), ELEMENTS, q, self.execution.precision
            )
            magnitude = jnp.exp(self.exp_mult * out[..., 1])
            change = -(self.step_mult * step_scale) * out[..., 0] * magnitude
            reports = out[..., 2:].reshape(-1, self.network_to_lstm)
            report = clipping.finite(reports.mean(0).astype(from_lstm.dtype))
            return change, report

        return move


def _start(key: jax.Array, size: int) -> jax.Array:
    """Draws a first report: variance 1/size, cut at two standard deviations."""
    # .8796 is the standard deviation of a standard normal cut at ±2.
    std = 1.0 / (0.87962566103423978 * math.sqrt(size))
    return std * jax.random.truncated_normal(key, -2.0, 2.0, (size,))


def _with_valid_loss(state: RNNMLPState, loss: jax.typing.ArrayLike) -> RNNMLPState:
    seen = jnp.isfinite(jnp.asarray(loss)).astype(state.step.dtype)
    averages = loss_normalizer.update(state.valid_loss, loss, VALID_LOSS_DECAY)
    return state._replace(step=state.step + seen, valid_loss=averages)


def _clipped(
    clip: Clip, grads: list[jax.Array], scales: list[jax.Array]
) -> tuple[Clip, list[jax.Array]]:
    """Clips gradients to ten times their usual size, and averages their size."""
    bound = CLIP_MULT * clip.average / accumulators.total_weight(CLIP_DECAY, clip.step)

    def one(grad: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        grad = clipping.bounded(grad / scale, bound.astype(grad.dtype))
        return grad, jnp.mean(grad * grad).astype(bound.dtype)

    clipped = [tensors.over(one, *x) for x in zip(grads, scales, strict=True)]
    squares = jnp.concatenate([square for _, square in clipped])
    size = jnp.sqrt(1e-8 + squares.mean())
    average = CLIP_DECAY * clip.average + (1.0 - CLIP_DECAY) * size
    return Clip(clip.step + 1.0, average), [grad for grad, _ in clipped]


def _tensor_features(
    value: jax.Array, grad: jax.Array, moments: TensorState, rank: jax.Array
) -> dict[str, jax.Array]:
    """Returns the LSTM's features of one tensor, named as in the original, `[]` each.

    There ms are momenta, rms second moments and v the parameters. Only the first four
    axes count.
    """
    magnitude = statistics.log_magnitude
    second = accumulators.present(moments.second_moment, "second moment")
    features = {
        "g_norm": magnitude(statistics.norm(grad)),
        "is_scalar": jnp.where(rank == 0, 1.0, -1.0),
        "mean_rms": magnitude(jnp.mean(second)),
        "mean_sign": jnp.sign(jnp.mean(second)),
        "norm_weight": magnitude(statistics.norm(value)),
        "var_rms": magnitude(statistics.variance(second)),
    }
    for i, size in enumerate((*value.shape, 1, 1, 1)[:4]):
        features[f"shape_{i}"] = jnp.asarray(math.log(size) - 1.0)
    for name, x in (("ms", moments.momentum), ("v", value)):
        features[f"mean_{name}_mag"] = magnitude(jnp.mean(x))
        features[f"mean_{name}_sign"] = jnp.sign(jnp.mean(x))
        features[f"var_{name}"] = magnitude(statistics.variance(x))
    return features


def _shared_features(
    value: jax.Array, step: jax.Array, num_tensors: int, from_lstm: jax.Array
) -> jax.Array:
    """Returns the inputs that a tensor's parameters share, `[14 + 17]`."""
    dtype = from_lstm.dtype
    scales = jnp.asarray(TIME_SCALES, dtype) * jnp.pi
    numbers = [
        jnp.asarray(math.log(num_tensors) - 1.0, dtype),
        jnp.log(statistics.norm(value) + 1e-8).astype(dtype),
        jnp.asarray(math.log(value.size), dtype),
    ]
    time = jnp.sin(step.astype(dtype) / scales)
    return jnp.concatenate([time, jnp.stack(numbers), from_lstm])


def _given(layers: per_parameter_mlp.Layers, shared: jax.Array) -> Any:
    """Folds the shared inputs into the first layer's bias."""
    kernel = jnp.asarray(layers["layer_0"]["kernel"])
    elements = kernel.shape[0] - shared.shape[0]
    bias = layers["layer_0"]["bias"] + shared @ kernel[elements:]
    return {**layers, "layer_0": {"kernel": kernel[:elements], "bias": bias}}
