"""Celo-Adam with the published weights against trajectories of the original."""

import dataclasses

import jax
import numpy as np
import pytest

from lopt.learned.celo_adam import CeloAdam
from parametrization import ADAM_LIKE, SGD_LIKE, Axes, ParamSpec
from tests.lopt.per_tensor.test_scheduler import tensor_lstm_theta
from tests.lopt.trajectories import LEAVES, Trajectory, assert_close


@pytest.fixture(scope="module", params=[("celo_adam", 2e-6), ("celo_adam_long", 3e-6)])
def reference(request, golden):
    name, atol = request.param
    return Trajectory(golden(f"{name}.npz")), atol


@pytest.fixture(scope="module")
def theta(reference):
    return {"scheduler": tensor_lstm_theta(reference[0].group("theta"))}


@pytest.fixture(scope="module")
def f32(reference, theta):
    return reference[0].run(CeloAdam(), theta, np.float32)


def test_theta_is_the_published_one(theta, golden):
    with np.load(golden("celo_adam_theta.npz"), allow_pickle=False) as file:
        trained = {"scheduler": tensor_lstm_theta({k: file[k] for k in file.files})}
    assert jax.tree.all(jax.tree.map(np.array_equal, theta, trained))
    ours = jax.eval_shape(CeloAdam().init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, ours) == jax.tree.map(np.shape, theta)


def test_every_step_in_float32(reference, f32):
    file, atol = reference
    for leaf in LEAVES:
        got, want = f32[0][leaf], file.arrays[f"params/{leaf}"][1:]
        assert got.dtype == np.float32 and len(got) == 20
        assert_close(got, want, 1e-5, atol)


def test_every_step_in_float64(reference, theta):
    path, _ = reference[0].run(CeloAdam(), theta, np.float64)
    for leaf in LEAVES:
        want = reference[0].arrays[f"params_f64/{leaf}"][1:]
        assert path[leaf].dtype == np.float64 and len(path[leaf]) == 20
        assert_close(path[leaf], want, 0, 5e-8)


def test_final_state(reference, f32):
    file, state = reference[0], f32[1]
    for theirs, ours in (("mom_rolling/m", "momentum"), ("rms_rolling/rms", None)):
        for leaf, want in file.group(f"final/{theirs}").items():
            got = getattr(state.tensors[leaf], ours or "second_moment")[-1]
            want = np.moveaxis(want, -1, 0).reshape(got.shape)
            assert_close(got, want, 1e-4, 1e-7 * np.abs(want).max())
    assert state.step[-1] == file.arrays["final/iteration"] == 20


SMALL = CeloAdam(lstm_hidden_size=3, step_mult=0.1)
SPECS = {
    "a": ParamSpec(Axes.parse("width -> width"), (4, 4), (2, 2)),
    "b": ParamSpec(Axes.parse("-> width"), (4,), (2,)),
    "empty": ParamSpec(Axes.parse("pixels -> width"), (0, 4), (0, 2)),
}


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0))
    theta = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), shapes)
    draw = [
        {n: np.float32(rng.normal(size=s.shape)) for n, s in SPECS.items()}
        for _ in range(2)
    ]
    return theta, *draw


def first_step(lopt):
    @jax.jit
    def step(theta, params, grads, loss, num_steps):
        rule = lopt.as_optax(theta, SPECS, num_steps)
        return rule.update(grads, rule.init(params), params, loss=loss)

    return lambda *given: jax.tree.map(np.asarray, step(*given))


@pytest.fixture(scope="module")
def step():
    return first_step(SMALL)


def test_the_first_step_has_the_scheduler_s_length(small, step):
    theta, params, grads = small
    steps, _ = step(theta, params, grads, 2.0, 10)
    lengths = np.abs(np.concatenate([steps["a"].ravel(), steps["b"]]))
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-3)
    assert np.all(np.sign(steps["a"]) == -np.sign(grads["a"]))
    assert steps["empty"].shape == (0, 4)
    # Nothing but the scheduler's exponent sets the length.
    louder = {**theta["scheduler"]}
    louder["step"] = {**louder["step"], "bias": louder["step"]["bias"] + np.log(2)}
    longer, _ = step({"scheduler": louder}, params, grads, 2.0, 10)
    np.testing.assert_allclose(longer["a"], 2 * steps["a"], rtol=1e-5)


def test_thirty_steps_in_float32_are_adam_s_in_float64(small):
    """Displacements from zero show a 1 − β₂ᵗ that is computed from a rounded β₂."""
    theta, zero, _ = jax.tree.map(np.zeros_like, small)
    grads = [np.random.default_rng(i).normal(size=4) for i in range(30)]
    rule = SMALL.as_optax(theta, SPECS, 30)
    update = jax.jit(rule.update)
    state, moved, want, m, v = rule.init(zero), 0.0, 0.0, 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        given = {**zero, "b": np.float32(g)}
        steps, state = update(given, state, zero, loss=np.float32(1.0))
        moved = moved + np.float64(steps["b"])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        root = np.sqrt(v / (1 - 0.999**t) + 1e-10) + 1e-8
        want = want - 0.1 * 0.1 * m / (1 - 0.9**t) / root
    assert np.abs(want).max() > 0.05
    np.testing.assert_allclose(moved, want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_bad_gradient_leaves_all_tensors_finite(small, step, bad):
    theta, params, grads = small
    sound, _ = step(theta, params, grads, 2.0, 10)
    broken = {**grads, "a": np.full_like(grads["a"], bad)}
    steps, state = step(theta, params, broken, 2.0, 10)
    np.testing.assert_array_equal(steps["b"], sound["b"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((steps, state)))


def test_mu_p_scales_the_step_and_unscales_the_gradient(small, step):
    """At twice the base width, gradients and hidden matrices' steps are halved."""
    theta, params, grads = small
    mup = first_step(dataclasses.replace(SMALL, rules=ADAM_LIKE))
    doubled = jax.tree.map(lambda g: 2 * g, grads)
    got, _ = mup(theta, params, grads, 2.0, 10)
    want, _ = step(theta, params, doubled, 2.0, 10)
    np.testing.assert_array_equal(got["a"], want["a"] / 2)
    np.testing.assert_array_equal(got["b"], want["b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lstm_hidden_size": 0}, "lstm_hidden_size = 0 must be"),
        ({"b2": 1.0}, "b2: decay 1.0 must lie in"),
        ({"eps": -1.0}, "eps = -1.0 must lie in"),
        ({"step_mult": 0.0}, "step_mult = 0.0 must be positive"),
        ({"rules": SGD_LIKE}, "rules = SGD_LIKE scales steps"),
    ],
)
def test_wrong_fields(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CeloAdam(), **change)


def test_it_needs_loss_and_parameters(small):
    theta, params, grads = small
    rule = SMALL.as_optax(theta, SPECS, 10)
    state = jax.eval_shape(rule.init, params)
    with pytest.raises(ValueError, match="CeloAdam needs the loss"):
        rule.update(grads, state, params)
    with pytest.raises(ValueError, match="CeloAdam needs params"):
        rule.update(grads, state, loss=1.0)
