"""The cell against its equations, written out in float64."""

import jax
import numpy as np

from lopt.per_tensor import lstm
from lopt.per_tensor.lstm import LSTMState


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_gates_stand_in_the_order_i_g_f_o_and_forgetting_has_an_offset():
    rng = np.random.default_rng(0)
    inputs, hidden, cell = (rng.normal(size=(5, n)) for n in (3, 2, 2))
    kernel, bias = rng.normal(size=(5, 8)), rng.normal(size=8)
    gates = np.concatenate([inputs, hidden], axis=1) @ kernel + bias
    i, g, f, o = (gates[:, 2 * k : 2 * k + 2] for k in range(4))
    want_cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(g)
    want = sigmoid(o) * np.tanh(want_cell)
    theta = {"kernel": np.float32(kernel), "bias": np.float32(bias)}
    state = LSTMState(np.float32(hidden), np.float32(cell))
    got, after = lstm.apply(theta, np.float32(inputs), state)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(after.cell, want_cell, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(after.hidden, got)


def test_every_row_begins_in_the_learned_state():
    theta = {"hidden": np.arange(4.0), "cell": np.arange(4.0) + 10}
    state = lstm.initial_state(theta, 3)
    np.testing.assert_array_equal(state.hidden, np.tile(np.arange(4.0), (3, 1)))
    np.testing.assert_array_equal(state.cell, np.tile(np.arange(4.0) + 10, (3, 1)))


def test_initial_weights_are_cut_at_two_standard_deviations():
    theta = jax.jit(lambda key: lstm.init(key, 60, 40))(jax.random.key(0))
    kernel = np.asarray(theta["kernel"])
    assert kernel.shape == (100, 160) and np.abs(kernel).max() <= 0.2
    np.testing.assert_allclose(kernel.std(), 0.08796, rtol=0.02)
    assert not np.any(theta["bias"])
