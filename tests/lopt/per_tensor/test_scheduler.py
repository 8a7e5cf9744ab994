"""The scheduling LSTM and its inputs against VeLO's, Celo's and Celo-Adam's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt import PAPER
from lopt.per_parameter import accumulators
from lopt.per_tensor import loss_buffer
from lopt.per_tensor.scheduler import TensorLSTM, num_tensor_features, tensor_features
from lopt.placement import blank
from tests.lopt import trajectories
from tests.lopt.trajectories import LEAVES, Trajectory, assert_close

STEP = 3
"""Features in the files are those inside update number 3."""


def tensor_lstm_theta(arrays, prefix="rnn_params"):
    """Weights in our names; the first mixing layer of the original has no effect."""
    theta = {
        "exchange": trajectories.dense(arrays, f"{prefix}/linear_1"),
        "inputs": trajectories.dense(arrays, f"{prefix}/linear_2"),
        "lstm": trajectories.lstm(arrays, f"{prefix}/rnn/linear"),
        "step": trajectories.dense(arrays, f"{prefix}/step_size"),
    }
    if f"{prefix}/rnn_to_controls/w" in arrays:
        theta["controls"] = trajectories.dense(arrays, f"{prefix}/rnn_to_controls")
    return theta


NETWORKS = {
    "velo_hyperv2": TensorLSTM(16, num_tensor_features(3), 8),
    "velo_hyperv2_bugged_loss": TensorLSTM(
        16, num_tensor_features(3), 8, bugged_losses=True
    ),
    "celo": TensorLSTM(64, bank_size=1, exponential=True),
    "celo_long": TensorLSTM(64, bank_size=1, exponential=True),
    "celo_adam": TensorLSTM(64, exponential=True),
    "celo_adam_long": TensorLSTM(64, exponential=True),
}


class Replay:
    """A network run along a golden trajectory, its accumulators rebuilt by ours."""

    def __init__(self, name, golden):
        self.file = Trajectory(golden(f"{name}.npz"))
        self.network = NETWORKS[name]
        self.theta = tensor_lstm_theta(self.file.group("theta"))
        params = {k: v[:-1] for k, v in self.file.group("params").items()}
        given = (params, self.file.group("grads"), self.file.arrays["loss"])
        run = jax.jit(self._run)
        self.seen, self.schedule, self.states = jax.tree.map(
            np.asarray, run(self.theta, given, self.file.num_steps)
        )

    def _run(self, theta, given, num_steps):
        network = self.network
        decays = accumulators.fixed((0.9, 0.99, 0.999), jnp.float32)
        second = accumulators.fixed((0.999,), jnp.float32)
        weights = accumulators.Complements(decays, second)

        def step(carry, given):
            state, averages, count = carry
            params, grads, loss = given
            rows = None
            if network.tensor_features:
                rows = jnp.stack(
                    [
                        tensor_features(jnp.atleast_1d(params[name]), averages[name])
                        for name in LEAVES
                    ]
                )
            arguments = (state, loss, count, num_steps, rows)
            seen, _ = network.inputs(*arguments)
            schedule, state = network.apply(theta, *arguments)
            averages = {
                name: accumulators.update(
                    averages[name],
                    jnp.atleast_1d(jnp.clip(grads[name], -1000, 1000)),
                    weights,
                    PAPER,
                )
                for name in LEAVES
            }
            return (state, averages, count + 1), (seen, schedule, state)

        empty = {
            name: accumulators.init(
                blank(x.shape[1:] or (1,), jnp.float32), 3, num_factored=0
            )
            for name, x in given[0].items()
        }
        start = (network.initial_state(theta, 6), empty, jnp.int32(0))
        return jax.lax.scan(step, start, given)[1]


SLOW = {"celo_adam_long"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in NETWORKS
    ],
)
def replay(request, golden):
    return Replay(request.param, golden)


def test_theta_has_the_shapes_of_the_original(replay):
    ours = jax.eval_shape(replay.network.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, ours) == jax.tree.map(np.shape, replay.theta)


def test_inputs_factors_and_controls(replay):
    """Celo's tensors have the same inputs and outputs, so one row stands for six."""
    features = replay.file.group("features")
    inputs = features["lstm_input"]
    assert_close(*np.broadcast_arrays(replay.seen[STEP], inputs), 1e-4, 1e-4)
    factors = replay.schedule.step_mult[STEP]
    assert_close(*np.broadcast_arrays(factors, features["lr_mult"]), 1e-4, 1e-5)
    if replay.network.bank_size:
        controls = replay.schedule.controls[STEP]
        assert_close(*np.broadcast_arrays(controls, features["controls"]), 1e-4, 1e-5)


def test_final_memory_and_losses(replay):
    # In a run of 1000 steps the reference's float32 loses digits of 1 − decay.
    atol = 1e-3 if replay.file.num_steps == 1000 else 1e-4
    for part in ("hidden", "cell"):
        want = replay.file.arrays[f"final/lstm_hidden_state/{part}"]
        got = getattr(replay.states.lstm, part)[-1]
        assert_close(*np.broadcast_arrays(got, want), 1e-4, atol)
    losses = replay.states.losses
    for theirs, ours in (("means", "means"), ("running_min", "minima")):
        want = replay.file.arrays[f"final/loss_buffer/{theirs}"]
        assert_close(getattr(losses, ours)[-1], want, 2e-5, 0)
    assert losses.losses[-1] == replay.file.arrays["final/loss_buffer/iteration"]


def numpy_losses(losses, num_steps):
    """The features after each loss, in float64."""
    decays = np.exp(-1 / np.logspace(1, np.log10(num_steps), 10))
    means, minima = np.zeros(10), np.full(10, np.inf)
    for t, loss in enumerate(losses, start=1):
        correction = 1 - decays**t
        if t > 1:
            loss = min(loss, 2 * abs(np.max(means / correction)))
        means = decays * means + (1 - decays) * loss
        corrected = means / correction
        minima = np.minimum(minima, corrected)
        span = np.maximum(corrected[1:] - minima[:-1], 1e-8)
        place = (corrected[:-1] - minima[:-1]) / span - 1
        yield np.clip(place, -1, 1) * (t > 2)


@pytest.fixture(scope="module")
def listen():
    """Features after each loss; the number of steps is traced."""

    @jax.jit
    def run(losses, num_steps):
        def step(buffer, loss):
            buffer = loss_buffer.update(buffer, loss, num_steps)
            return buffer, loss_buffer.features(buffer, num_steps)

        return jax.lax.scan(step, loss_buffer.init(losses.dtype), losses)[1]

    return run


@pytest.mark.parametrize("num_steps", [10, 200, 30000])
def test_loss_features_in_float64(listen, num_steps):
    rng = np.random.default_rng(0)
    losses = np.exp(-np.arange(40) / 20) + 0.05 * rng.normal(size=40)
    losses[25] = 50.0
    with jax.enable_x64(True):
        got = listen(losses, num_steps)
    want = np.stack(list(numpy_losses(losses, num_steps)))
    # At 10 steps all means are equal: above their minimum, a quotient of equals.
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.all(want[:2] == 0) and np.ptp(want[2:]) > 0.9


def test_a_loss_that_is_not_finite_is_left_out(listen):
    losses = np.float32([1.0, 1.0, 1.0, 3.0, 2.0])
    broken = np.float32([np.nan, 1.0, 1.0, np.inf, 1.0, 3.0, -np.inf, 2.0])
    want, got = (np.asarray(listen(x, 100)) for x in (losses, broken))
    assert np.isfinite(got).all() and np.ptp(want[-1]) > 0.01
    np.testing.assert_allclose(got[-1], want[-1], rtol=1e-6)


def test_the_order_of_the_rows_does_not_matter():
    rng = np.random.default_rng(0)
    network = TensorLSTM(4, num_tensor_features(3), 2)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    theta = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), shapes)
    rows = np.float32(rng.normal(size=(5, 12)))
    state = network.initial_state(theta, 5)
    order = np.array([3, 0, 4, 1, 2])

    @jax.jit
    def schedule(rows):
        return network.apply(theta, state, 1.0, jnp.int32(3), 10, rows)[0]

    one, two = schedule(rows), schedule(rows[order])
    np.testing.assert_allclose(two.step_mult, one.step_mult[order], rtol=1e-5)
    np.testing.assert_allclose(two.controls, one.controls[order], rtol=1e-4, atol=1e-6)


def test_ranks_are_told_apart_by_axes_longer_than_one():
    ranks = {(1,): 0, (7,): 1, (1, 9): 1, (3, 1, 4, 2): 3}

    @jax.jit
    def look():
        return [
            tensor_features(
                jnp.ones(shape), accumulators.init(blank(shape, jnp.float32), 3, 1, 0)
            )
            for shape in ranks
        ]

    for got, rank in zip(look(), ranks.values(), strict=True):
        np.testing.assert_array_equal(got[1:6], np.eye(5)[rank])
