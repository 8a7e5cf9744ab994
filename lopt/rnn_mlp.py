"""RNN-MLP: a small network for every parameter, guided by an LSTM for every tensor.

The LSTM sees a tensor's statistics, shape and the loss; what it says enters the
per-parameter network as 17 inputs that are the same for the whole tensor. Two channels
lead back: the network reports 16 numbers per parameter, whose mean over the tensor the
LSTM sees in the next step, and the LSTM 18 numbers per tensor, whose mean over all
tensors every tensor sees in the next step. A parameter moves by
`−direction·exp(magnitude·exp_mult)·step_mult`.

Tensors are coupled twice more: gradients are clipped to ten times a running average of
their size over all tensors, and the number of tensors is an input. The clip is the
bound of `sanitizer.bounded`, so an infinite gradient never reaches another tensor.

References:
    Metz et al., Tasks, stability, architecture, and compute: training more effective
    learned optimizers, arXiv:2009.11243; `RNNMLPLOpt` of google/learned_optimization.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt import dense, loss_normalizer, lstm, sanitizer
from lopt import tensor_statistics as statistics
from lopt.base import Specs, Theta
from lopt.epsilons import PAPER, Epsilons
from lopt.loss_normalizer import LossAverages
from lopt.lstm import LSTMState
from lopt.tensor_stack import Tensors, TensorStack, wide
from parametrization.rules import ADAM_LIKE, COMPLETEP, STANDARD, Rules

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
TRAIN_LOSS_DECAY, VALID_LOSS_DECAY = 0.9, 0.95
CLIP_DECAY, CLIP_MULT = 0.99, 10.0
TENSOR_FEATURES = 18
"""Inputs of the LSTM besides the two channels that lead back to it."""


class Moments(NamedTuple):
    """Averages of one leaf with K decays."""

    momentum: jax.Array  # [n, K, *S]
    second_moment: jax.Array  # [n, K, *S]


class Clip(NamedTuple):
    """Running average of the root mean square gradient, not yet bias-corrected."""

    step: jax.Array  # [] float, one more than clips done
    average: jax.Array  # []


class RNNMLPState(NamedTuple):
    """State of the transformation; R tensors have rows (see `tensor_stack`)."""

    step: jax.Array  # [] int32, updates done, validation losses counted
    moments: Any  # tree of Moments, parallel to the parameters
    lstm: LSTMState  # [R, H]
    from_network: jax.Array  # [R, 16]
    from_tensors: jax.Array  # [18]
    train_loss: LossAverages
    valid_loss: LossAverages
    clip: Clip


@dataclasses.dataclass(frozen=True)
class RNNMLP:
    """The learned optimizer RNN-MLP; its update takes the keyword `loss`.

    A validation loss may be given as the keyword `valid_loss`, `[]`, in any update
    (NaN, like None, where there is none at this step). It counts as a step of its own.
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
    """Factor on the network's last layer at initialization: at 1, as in the original,
    an untrained optimizer takes random steps; at 0 none."""
    epsilons: Epsilons = PAPER
    """Floors inside the features: `normalizer` and `second_moment` are used."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP), COMPLETEP or STANDARD."""

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "hidden_layers",
            "network_to_lstm",
            "lstm_to_lstm",
            "lstm_to_network",
            "lstm_size",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value} must be a positive whole number")
        if not 0.0 < self.step_mult <= 1e3:
            raise ValueError(f"step_mult = {self.step_mult} must lie in (0, 1000]")
        for name in ("exp_mult", "output_scale"):
            value = getattr(self, name)
            if not abs(value) <= 1e3:
                raise ValueError(f"{name} = {value} must lie in [-1000, 1000]")
        if not self.decays or not all(0.0 <= decay < 1.0 for decay in self.decays):
            raise ValueError(f"decays = {self.decays} must be numbers in [0, 1)")
        if self.rules not in (STANDARD, ADAM_LIKE, COMPLETEP):
            raise ValueError(
                f"rules = {self.rules!r} must be STANDARD, ADAM_LIKE or COMPLETEP"
            )

    @property
    def network_inputs(self) -> int:
        """Inputs of the per-parameter network: of the element, then of the tensor."""
        element = 3 + 4 * len(self.decays)
        return element + len(TIME_SCALES) + 3 + self.lstm_to_network

    def init(self, key: jax.Array) -> Theta:
        """θ: the LSTM, its two readouts, the network, and how the channels begin.

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

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that θ describes (see `LearnedOptimizer.as_optax`).

        `num_steps` is not used: this rule does not know the end of the run.
        """
        del num_steps

        def init(params: optax.Params) -> RNNMLPState:
            return self._initial_state(theta, TensorStack.of(params, specs), params)

        def update(
            updates: optax.Updates,
            state: RNNMLPState,
            params: optax.Params | None = None,
            *,
            loss: jax.typing.ArrayLike | None = None,
            valid_loss: jax.typing.ArrayLike | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, RNNMLPState]:
            del extra_args
            if params is None:
                raise ValueError("RNNMLP needs params: update(grads, state, params)")
            if loss is None:
                raise ValueError(
                    "RNNMLP needs the loss: update(grads, state, params, loss=loss)"
                )
            stack = TensorStack.of(updates, specs)
            if not stack.tensors:
                return updates, state._replace(step=state.step + 1)
            if valid_loss is not None:
                state = _with_valid_loss(state, valid_loss)
            return self._update(theta, stack, updates, state, params, loss)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def _initial_state(
        self, theta: Theta, stack: TensorStack, params: optax.Params
    ) -> RNNMLPState:
        kinds = {tensor.index: tensor for tensor in stack.tensors}
        leaves = stack.structure.flatten_up_to(params)
        moments = stack.structure.unflatten(
            [
                self._empty(kinds[i], leaf) if i in kinds else leaf
                for i, leaf in enumerate(leaves)
            ]
        )
        dtype = wide(theta["from_network"])
        start = jnp.asarray(theta["from_network"], dtype)[None]
        return RNNMLPState(
            step=jnp.zeros([], jnp.int32),
            moments=moments,
            lstm=lstm.initial_state(theta["lstm"], stack.num_rows),
            from_network=jnp.broadcast_to(start, (stack.num_rows, start.shape[1])),
            from_tensors=jnp.asarray(theta["from_tensors"], dtype),
            train_loss=loss_normalizer.init(dtype),
            valid_loss=loss_normalizer.init(dtype),
            clip=Clip(jnp.ones([], dtype), jnp.asarray(1.0 - CLIP_DECAY, dtype)),
        )

    def _empty(self, tensor: Tensors, leaf: jax.Array) -> Moments:
        shape = (tensor.count, len(self.decays), *tensor.shape)
        return Moments(jnp.zeros(shape, wide(leaf)), jnp.zeros(shape, wide(leaf)))

    def _update(
        self,
        theta: Theta,
        stack: TensorStack,
        updates: optax.Updates,
        state: RNNMLPState,
        params: optax.Params,
        loss: jax.typing.ArrayLike,
    ) -> tuple[optax.Updates, RNNMLPState]:
        clip, grads = _clipped(state.clip, stack.gradients(updates, self.rules))
        values = stack.arrays(params)
        moments = [
            Moments(*(_averaged(*pair, self.decays) for pair in ((m, g), (v, g * g))))
            for (m, v), g in zip(stack.select(state.moments), grads, strict=True)
        ]
        train_loss, losses = _loss_features(state, loss)
        rows = [
            _tensor_features(*leaf)
            for leaf in zip(stack.tensors, values, grads, moments, strict=True)
        ]
        inputs = _lstm_inputs(state, jnp.concatenate(rows), losses)
        outputs, memory = lstm.apply(theta["lstm"], inputs, state.lstm)
        to_network = dense.apply(theta["to_network"], outputs)
        steps, reports = [], []
        for leaf in zip(values, grads, moments, stack.split(to_network), strict=True):
            elements = self._element_features(*leaf[:3])
            tensors = _shared_features(leaf[0], state.step, stack.num_rows, leaf[3])
            out = self._network(theta, elements, tensors)
            magnitude = jnp.exp(self.exp_mult * out[..., 1])
            step = self.step_mult * out[..., 0] * magnitude
            steps.append(step.reshape(leaf[0].shape))
            reports.append(out[..., 2:].mean(1))
        new_state = RNNMLPState(
            step=state.step + 1,
            moments=stack.replace(state.moments, moments),
            lstm=memory,
            from_network=jnp.concatenate(reports).astype(state.from_network.dtype),
            from_tensors=dense.apply(theta["to_tensors"], outputs)
            .mean(0)
            .astype(state.from_tensors.dtype),
            train_loss=train_loss,
            valid_loss=state.valid_loss,
            clip=clip,
        )
        return stack.updates(params, steps, self.rules), new_state

    def _element_features(
        self, param: jax.Array, grad: jax.Array, moments: Moments
    ) -> jax.Array:
        """Normalized inputs of the network, one set an element, `[n, P, 23]`."""
        n = param.shape[0]
        m, v = (x.reshape(n, len(self.decays), -1) for x in moments)
        grad, param = (x.reshape(n, 1, -1) for x in (grad, param))
        root = jax.lax.rsqrt(v + self.epsilons.second_moment)
        size = jnp.log(jnp.abs(param) + 1e-8)
        stacked = jnp.concatenate([grad, param, size, m, v, m * root, root], axis=1)
        square = jnp.mean(stacked * stacked, axis=-1, keepdims=True)
        normalized = stacked * jax.lax.rsqrt(square + self.epsilons.normalizer)
        return jnp.swapaxes(normalized, 1, 2)

    def _network(
        self, theta: Theta, elements: jax.Array, tensors: jax.Array
    ) -> jax.Array:
        """Outputs `[n, P, 2 + 16]`; what is one for a tensor enters as a bias."""
        first = theta["layer_0"]
        kernel = jnp.asarray(first["kernel"])
        split = elements.shape[-1]
        bias = dense.apply({**first, "kernel": kernel[split:]}, tensors)
        hidden = elements @ kernel[:split] + bias[:, None]
        for i in range(1, self.hidden_layers + 1):
            hidden = dense.apply(theta[f"layer_{i}"], jnp.maximum(hidden, 0.0))
        return hidden


def _start(key: jax.Array, size: int) -> jax.Array:
    """How a channel begins: variance 1/size, cut at two standard deviations."""
    # .8796 is the standard deviation of a standard normal cut at ±2.
    std = 1.0 / (0.87962566103423978 * math.sqrt(size))
    return std * jax.random.truncated_normal(key, -2.0, 2.0, (size,))


def _with_valid_loss(state: RNNMLPState, loss: jax.typing.ArrayLike) -> RNNMLPState:
    seen = jnp.isfinite(jnp.asarray(loss)).astype(state.step.dtype)
    averages = loss_normalizer.update(state.valid_loss, loss, VALID_LOSS_DECAY)
    return state._replace(step=state.step + seen, valid_loss=averages)


def _loss_features(
    state: RNNMLPState, loss: jax.typing.ArrayLike
) -> tuple[LossAverages, jax.Array]:
    """Averages with this loss, and how train and validation loss compare, `[2]`."""
    averages = loss_normalizer.update(state.train_loss, loss, TRAIN_LOSS_DECAY)
    valid = loss_normalizer.mean(state.valid_loss, VALID_LOSS_DECAY)
    compared = [
        loss_normalizer.feature(averages, x, TRAIN_LOSS_DECAY) for x in (loss, valid)
    ]
    return averages, jnp.stack(compared)


def _clipped(clip: Clip, grads: list[jax.Array]) -> tuple[Clip, list[jax.Array]]:
    """Gradients within ten times their usual size, and the average that says so."""
    dtype = clip.average.dtype
    bound = CLIP_MULT * clip.average / (1.0 - CLIP_DECAY**clip.step)
    grads = [sanitizer.bounded(g, bound.astype(g.dtype)) for g in grads]
    squares = jnp.concatenate([statistics.mean(g * g).astype(dtype) for g in grads])
    size = jnp.sqrt(1e-8 + squares.mean())
    average = CLIP_DECAY * clip.average + (1.0 - CLIP_DECAY) * size
    return Clip(clip.step + 1.0, average), grads


def _averaged(old: jax.Array, new: jax.Array, decays: tuple[float, ...]) -> jax.Array:
    """Averages `[n, K, *S]` with one more value `[n, *S]`."""
    shape = (1, -1, *(1,) * (new.ndim - 1))
    keep = jnp.asarray(decays, old.dtype).reshape(shape)
    take = jnp.asarray([1.0 - decay for decay in decays], old.dtype).reshape(shape)
    return keep * old + take * new[:, None]


def _tensor_features(
    tensor: Tensors, param: jax.Array, grad: jax.Array, moments: Moments
) -> jax.Array:
    """What the LSTM sees of one leaf, in order of the names, `[n, 16]`.

    The names are those of the original: ms for momenta, rms for second moments, v for
    parameters. Of a rank above 4, the first four axes are told.
    """
    magnitude = statistics.log_magnitude
    sizes = (*tensor.shape, 1, 1, 1, 1)[:4]
    scalar = 1.0 if not tensor.shape else -1.0
    features = {
        "g_norm": magnitude(statistics.norm(grad)),
        "is_scalar": jnp.full([tensor.count], scalar),
        "mean_rms": magnitude(statistics.mean(moments.second_moment)),
        "mean_sign": jnp.sign(statistics.mean(moments.second_moment)),
        "norm_weight": magnitude(statistics.norm(param)),
        "var_rms": magnitude(statistics.variance(moments.second_moment)),
    }
    for i, size in enumerate(sizes):
        features[f"shape_{i}"] = jnp.full([tensor.count], math.log(size) - 1.0)
    for name, x in (("ms", moments.momentum), ("v", param)):
        features[f"mean_{name}_mag"] = magnitude(statistics.mean(x))
        features[f"mean_{name}_sign"] = jnp.sign(statistics.mean(x))
        features[f"var_{name}"] = magnitude(statistics.variance(x))
    return statistics.stack_features(features)


def _lstm_inputs(
    state: RNNMLPState, tensors: jax.Array, losses: jax.Array
) -> jax.Array:
    """Inputs of the LSTM `[R, 52]`, losses `[2]` before the three spreads."""
    dtype = state.from_network.dtype
    rows = tensors.shape[0]

    def every(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x.astype(dtype)[None], (rows, x.shape[0]))

    tensors = tensors.astype(dtype)
    return jnp.concatenate(
        [
            every(state.from_tensors),
            state.from_network,
            tensors[:, :-3],
            every(losses),
            tensors[:, -3:],
        ],
        axis=1,
    )


def _shared_features(
    param: jax.Array, step: jax.Array, num_tensors: int, to_network: jax.Array
) -> jax.Array:
    """Inputs of the network that a tensor's parameters share, `[n, 14 + 17]`."""
    n = param.shape[0]
    dtype = to_network.dtype
    scales = jnp.asarray(TIME_SCALES, dtype) * jnp.pi
    time = jnp.sin(step.astype(dtype) / scales)
    numbers = [
        jnp.full([n], math.log(num_tensors) - 1.0, dtype),
        jnp.log(statistics.norm(param) + 1e-8).astype(dtype),
        jnp.full([n], math.log(param.size // n), dtype),
    ]
    return jnp.concatenate(
        [
            jnp.broadcast_to(time[None], (n, len(TIME_SCALES))),
            jnp.stack(numbers, axis=1),
            to_network,
        ],
        axis=1,
    )
