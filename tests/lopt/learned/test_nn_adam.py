"""NNAdam against trajectories of the original implementation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configuration import encoding
from lopt.learned.nn_adam import HYPERPARAMETERS, NNAdam, hyperparameters
from lopt.release import registry
from parametrization import ADAM_LIKE, SGD_LIKE, Axes, ParamSpec
from tests.lopt import trajectories
from tests.lopt.trajectories import LEAVES, Trajectory, assert_close

# Of ln(rate)/10, ln(1 − β)/10 and ln(ε)/10, as the original clips them.
BOUNDS = (
    (0.1 * np.log(1e-8), 0.1 * np.log(1e3)),
    (-1.0, 0.0),
    (-1.0, 0.0),
    (0.1 * np.log(1e-11), 0.1 * np.log(1e4)),
)
THEIR_NAMES = ("lr", "beta1", "beta2", "epsilon")


@pytest.fixture(scope="module")
def reference(golden):
    return Trajectory(golden("nn_adam.npz"))


@pytest.fixture(scope="module")
def theta(reference):
    arrays = reference.group("theta")
    names = zip(HYPERPARAMETERS, THEIR_NAMES, strict=True)
    return {
        "lstm": trajectories.lstm(arrays),
        "controls": trajectories.dense(
            arrays, "rnn_to_controls_params/rnn_to_controls"
        ),
        "hyperparameters": {
            ours: arrays[f"per_layer_{theirs}"] for ours, theirs in names
        },
    }


@pytest.fixture(scope="module")
def f32(reference, theta):
    return reference.run(NNAdam(hidden_size=16), theta, np.float32)


@pytest.fixture(scope="module")
def f64(reference, theta):
    return reference.run(NNAdam(hidden_size=16), theta, np.float64)


def test_theta_is_that_of_the_original(theta):
    ours = jax.eval_shape(NNAdam(hidden_size=16).init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, ours) == jax.tree.map(np.shape, theta)
    default = jax.eval_shape(NNAdam().init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(default)) == 6856


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_step_in_float32(reference, f32, leaf):
    got, want = f32[0][leaf], reference.arrays[f"params/{leaf}"][1:]
    assert got.dtype == np.float32 and len(got) == 20
    assert_close(got, want, 1e-5, 9e-6)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_step_in_float64(reference, f64, leaf):
    got, want = f64[0][leaf], reference.arrays[f"params_f64/{leaf}"][1:]
    assert got.dtype == np.float64 and len(got) == 20
    assert_close(got, want, 0, 1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours", "decay"),
    [("m", "momentum", "beta1"), ("rms", "second_moment", "beta2")],
)
def test_final_moments(reference, f32, f64, theirs, ours, decay):
    """The reference rounds 1 − β twice, in its own float32; ours keeps its digits."""
    for leaf, want in reference.group(f"final/rolling_features/{theirs}").items():
        got, exact = (
            getattr(x[1].moments[leaf], ours)[-1].reshape(want.shape)
            for x in (f32, f64)
        )
        complement = np.exp(10 * reference.arrays[f"final/per_layer_{decay}/{leaf}"])
        rounding = 2 * np.finfo(np.float32).eps / complement
        assert rounding < 5e-4
        assert_close(got, want, max(1e-4, rounding), 1e-7 * np.abs(want).max())
        assert_close(got, exact, 2e-5, 1e-7 * np.abs(want).max())


def test_final_hyperparameters_and_memory(reference, f32, f64):
    for column, name in enumerate(THEIR_NAMES):
        wants = reference.group(f"final/per_layer_{name}")
        want = np.stack([wants[leaf] for leaf in LEAVES])
        start = reference.arrays[f"theta/per_layer_{name}"]
        assert np.abs(want - start).max() > 1e-3, "they have moved"
        assert_close(f32[1].hyperparameters[-1, :, column], want, 1e-5, 1e-5)
        assert_close(f64[1].hyperparameters[-1, :, column], want, 1e-5, 1e-5)
    for part in ("hidden", "cell"):
        want = reference.arrays[f"final/lstm_hidden_state/{part}"]
        assert_close(getattr(f32[1].lstm, part)[-1], want, 1e-4, 1e-5)
    assert f32[1].step[-1] == reference.arrays["final/iteration"] == 20


def test_hyperparameters_of_the_initial_theta():
    lopt = NNAdam(initial_learning_rate=0.02, initial_b1=0.8, initial_epsilon=1e-6)
    theta = quick(lopt.init)(jax.random.key(0))
    learned = jnp.stack([theta["hyperparameters"][n] for n in HYPERPARAMETERS])
    got = [float(x[0]) for x in hyperparameters(learned[None])]
    np.testing.assert_allclose(got, [0.02, 0.2, 0.001, 1e-6], rtol=1e-5)


SMALL = NNAdam(hidden_size=16, initial_learning_rate=0.1)
SPECS = {
    "a": ParamSpec(Axes.parse("width -> width"), (4, 4), (2, 2)),
    "b": ParamSpec(Axes.parse("-> width"), (4,), (2,)),
    "empty": ParamSpec(Axes.parse("pixels -> width"), (0, 4), (0, 2)),
}


def quick(function):
    return jax.jit(function)


@pytest.fixture(scope="module")
def initial():
    """Initial θ, with a learning rate large enough to see."""
    return quick(SMALL.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def first_step(initial):
    """The first updates and state after it, from `(grads, params)`."""

    def compiled(lopt):
        @quick
        def step(theta, grads, params):
            transformation = lopt.as_optax(theta, SPECS, 10)
            return transformation.update(grads, transformation.init(params), params)

        return lambda *given: jax.tree.map(np.asarray, step(initial, *given))

    return compiled(SMALL), compiled(dataclasses.replace(SMALL, rules=ADAM_LIKE))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    draw = {n: np.float32(rng.normal(size=s.shape)) for n, s in SPECS.items()}
    return draw, jax.tree.map(lambda x: 0.5 * x + 1, draw)


@pytest.mark.parametrize("strength", [0.0, 0.2, 1.0])
def test_hyperparameters_are_pulled_back_to_theta_s(initial, strength):
    """Compares six steps with NumPy; the readout is a bias, whatever the LSTM does."""
    rng = np.random.default_rng(0)
    lopt = dataclasses.replace(SMALL, output_scale=0.1, decay_strength=strength)
    change = np.array([-1.0, 0.5, 8.0, 2.0])  # the third reaches its bound
    with jax.enable_x64(True):
        theta = jax.tree.map(np.float64, initial)
        theta["controls"] = {"kernel": np.zeros((16, 4)), "bias": change}
        rule = lopt.as_optax(theta, SPECS, 10)
        params, grads = (
            {n: rng.normal(size=s.shape) for n, s in SPECS.items()} for _ in "12"
        )
        update, state = quick(rule.update), rule.init(params)
        m = v = 0.0
        start = h = np.array([theta["hyperparameters"][n] for n in HYPERPARAMETERS])
        for _ in range(6):
            steps, state = update(grads, state, params)
            rate, c1, c2, eps = np.exp(10 * h)
            m = (1 - c1) * m + c1 * grads["a"]
            v = (1 - c2) * v + c2 * grads["a"] ** 2
            want = -rate * (1 + eps) * m / (eps + np.sqrt(v + 1e-10))
            np.testing.assert_allclose(steps["a"], want, rtol=1e-12)
            h = h + 0.1 * change
            h = h - strength * (h - start)
            h = np.clip(h, *np.array(BOUNDS).T)
            learned = np.asarray(state.hyperparameters)
            np.testing.assert_allclose(learned, np.stack([h, h]), rtol=1e-12)
    assert (h == start).all() == (strength == 1)


def test_artifacts_from_before_pull_nothing_back():
    stored = encoding.encode(NNAdam(), registry.KINDS)
    assert "decay_strength" not in stored
    assert encoding.decode_kind(stored, "it", registry.KINDS) == NNAdam()
    pulled = NNAdam(decay_strength=0.5)
    stored = encoding.encode(pulled, registry.KINDS)
    assert encoding.decode_kind(stored, "it", registry.KINDS) == pulled


def test_the_first_step_is_adam_s_without_bias_correction(inputs, first_step):
    grads, params = inputs
    got, _ = first_step[0](grads, params)
    for name in ("a", "b"):
        g = np.float64(grads[name])
        want = -0.1 * 0.1 * g / (1e-8 + np.sqrt(0.001 * g * g + 1e-10))
        np.testing.assert_allclose(got[name], want, rtol=1e-5)
    assert got["empty"].shape == (0, 4)


def test_mu_p_scales_the_step_and_unscales_the_gradient(inputs, first_step):
    """At twice the base width, gradients and hidden matrices' steps are halved."""
    grads, params = inputs
    standard, _ = first_step[0](jax.tree.map(lambda g: 2 * g, grads), params)
    mup, _ = first_step[1](grads, params)
    np.testing.assert_array_equal(mup["a"], standard["a"] / 2)
    np.testing.assert_array_equal(mup["b"], standard["b"])


def test_a_gradient_that_is_not_finite_spoils_its_own_tensor_only(inputs, first_step):
    grads, params = inputs
    sound, state = first_step[0](grads, params)
    for bad in (np.inf, np.nan):
        broken = {**grads, "a": grads["a"] * np.float32(bad)}
        steps, after = first_step[0](broken, params)
        np.testing.assert_array_equal(steps["b"], sound["b"])
        np.testing.assert_array_equal(after.lstm.hidden[1], state.lstm.hidden[1])
        assert np.isfinite(steps["a"]).all() == (bad == np.inf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size = 0 must be a positive"),
        ({"initial_b1": 1.0}, "initial_b1 = 1.0 must lie in"),
        ({"initial_learning_rate": 0.0}, "initial_learning_rate = 0.0 must lie in"),
        ({"output_scale": float("nan")}, "output_scale = nan"),
        ({"decay_strength": 1.5}, "decay_strength = 1.5 must lie in"),
        ({"rules": SGD_LIKE}, "rules = Rules.SGD_LIKE must be"),
    ],
)
def test_wrong_fields(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NNAdam(), **change)


def test_it_needs_the_parameters_and_their_own_specs(inputs, initial):
    grads, params = inputs
    transformation = SMALL.as_optax(initial, SPECS, 10)
    state = transformation.init(params)
    with pytest.raises(ValueError, match="NNAdam needs params"):
        transformation.update(grads, state)
    with pytest.raises(ValueError, match="must be those of this model"):
        transformation.init({**params, "a": np.zeros((2, 2), "float32")})
