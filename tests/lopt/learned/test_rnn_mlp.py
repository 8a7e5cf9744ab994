"""RNN-MLP against trajectories of the original, and its care for other tensors."""

import dataclasses

import jax
import numpy as np
import pytest

from lopt.learned.rnn_mlp import RNNMLP
from parametrization import ADAM_LIKE, SGD_LIKE, Axes, ParamSpec
from tests.lopt import trajectories
from tests.lopt.trajectories import LEAVES, Trajectory, assert_close

LOPT = RNNMLP(step_mult=0.01)
VALID_STEPS = [5, 11]


@pytest.fixture(scope="module")
def reference(golden):
    return Trajectory(golden("rnn_mlp.npz"))


@pytest.fixture(scope="module")
def theta(reference):
    arrays = reference.group("theta")
    layers = {
        f"layer_{i}": trajectories.dense(arrays, f"ffmod_params/mlp/~/linear_{i}")
        for i in range(3)
    }
    return {
        **layers,
        "lstm": trajectories.lstm(arrays),
        "to_network": trajectories.dense(arrays, "rnn_to_ff_params/rnn_to_ff"),
        "to_tensors": trajectories.dense(arrays, "rnn_to_in_params/rnn_to_in"),
        "from_network": arrays["initial_from_mlp"],
        "from_tensors": arrays["initial_from_lstm"],
    }


@pytest.fixture(scope="module")
def inputs(reference):
    """The steps that train; a validation loss comes with the step after it."""
    assert reference.config["valid_steps"] == VALID_STEPS
    loss = reference.arrays["loss"]
    keep = np.setdiff1d(np.arange(20), VALID_STEPS)
    valid = np.full(20, np.nan)
    valid[[step + 1 for step in VALID_STEPS]] = loss[VALID_STEPS]
    grads = jax.tree.map(lambda g: g[keep], reference.group("grads"))
    return {"grads": grads, "loss": loss[keep], "valid_loss": valid[keep]}, keep


@pytest.fixture(scope="module")
def f32(reference, theta, inputs):
    return reference.run(LOPT, theta, np.float32, inputs[0])


@pytest.fixture(scope="module")
def f64(reference, theta, inputs):
    return reference.run(LOPT, theta, np.float64, inputs[0])


def test_theta_is_that_of_the_original(theta):
    ours = jax.eval_shape(LOPT.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, ours) == jax.tree.map(np.shape, theta)
    assert sum(x.size for x in jax.tree.leaves(ours)) == 35799


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_step_in_float32(reference, f32, inputs, leaf):
    got, want = f32[0][leaf], reference.arrays[f"params/{leaf}"][inputs[1] + 1]
    assert got.dtype == np.float32 and len(got) == 18
    assert_close(got, want, 1e-5, 6e-6)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_step_in_float64(reference, f64, inputs, leaf):
    got, want = f64[0][leaf], reference.arrays[f"params_f64/{leaf}"][inputs[1] + 1]
    assert got.dtype == np.float64 and len(got) == 18
    assert_close(got, want, 0, 1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("mom_rolling/m", "momentum"), ("rms_rolling/rms", "second_moment")],
)
def test_final_moments(reference, f32, theirs, ours):
    for leaf, want in reference.group(f"final/{theirs}").items():
        got = getattr(f32[1].moments[leaf], ours)[-1]
        # Decay .9999: the reference rounds 1 − decay to 1e-4 of itself.
        want = np.moveaxis(want, -1, 0).reshape(got.shape)
        assert_close(got, want, 2e-4, 1e-7 * np.abs(want).max())
        assert_close(got[:4], want[:4], 1e-4, 1e-7 * np.abs(want).max())


def test_final_state_of_the_tensors(reference, f32):
    state, arrays = f32[1], reference.arrays
    for part in ("hidden", "cell"):
        want = arrays[f"final/lstm_hidden_state/{part}"]
        assert_close(getattr(state.lstm, part)[-1], want, 1e-4, 1e-5)
    assert_close(state.from_tensors[-1], arrays["final/from_lstm"], 1e-4, 1e-5)
    want = np.stack([arrays[f"final/from_mlp/{leaf}"] for leaf in LEAVES])
    assert_close(state.from_network[-1], want, 1e-4, 1e-5)


def test_final_losses_clip_and_count(reference, f32):
    state, arrays = f32[1], reference.arrays
    for name in ("train_loss", "valid_loss"):
        averages = getattr(state, name)
        for theirs, ours in (("mean", "mean"), ("var", "variance")):
            want = arrays[f"final/{name}_accum/{theirs}"]
            assert_close(getattr(averages, ours)[-1], want, 1e-5, 0)
        assert averages.losses[-1] == arrays[f"final/{name}_accum/updates"]
    assert_close(state.clip.average[-1], arrays["final/dynamic_clip/value"], 1e-5, 0)
    assert state.clip.step[-1] == arrays["final/dynamic_clip/iteration"]
    assert state.step[-1] == arrays["final/iteration"] == 20


SMALL = RNNMLP(hidden_size=4, lstm_size=5, step_mult=0.1)
SPECS = {
    "a": ParamSpec(Axes.parse("width -> width"), (4, 4), (2, 2)),
    "b": ParamSpec(Axes.parse("-> width"), (4,), (2,)),
    "empty": ParamSpec(Axes.parse("pixels -> width"), (0, 4), (0, 2)),
    "s": ParamSpec(Axes.parse("[layers] width -> width"), (2, 4, 4), (2, 2, 2)),
}


def quick(function):
    return jax.jit(function)


@pytest.fixture(scope="module")
def small():
    """θ, parameters, and three rounds of gradients and losses."""
    rng = np.random.default_rng(0)

    def draw(*lead):
        return {
            n: np.float32(rng.normal(size=lead + s.shape)) for n, s in SPECS.items()
        }

    shapes = jax.eval_shape(SMALL.init, jax.random.key(0))
    theta = jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes)
    return theta, draw(), draw(3), np.float32([2.0, 1.5, 1.0])


def last_step(lopt, specs):
    """Compiled: updates and state of the last round."""

    @quick
    def run(theta, params, grads, losses):
        rule = lopt.as_optax(theta, specs, 10)

        def step(carry, given):
            updates, state = rule.update(given[0], carry[1], carry[0], loss=given[1])
            moved = jax.tree.map(lambda p, u: p + u, carry[0], updates)
            return (moved, state), updates

        (_, state), updates = jax.lax.scan(
            step, (params, rule.init(params)), (grads, losses)
        )
        return jax.tree.map(lambda u: u[-1], updates), state

    return lambda *given: jax.tree.map(np.asarray, run(*given))


@pytest.fixture(scope="module")
def run_small():
    return last_step(SMALL, SPECS)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_bad_gradient_leaves_all_tensors_finite(small, run_small, bad):
    theta, params, grads, losses = small
    sound, _ = run_small(*small)
    broken = jax.tree.map(np.copy, grads)
    broken["a"][1] = bad
    steps, state = run_small(theta, params, broken, losses)
    for name in ("a", "b", "s"):
        assert np.isfinite(steps[name]).all()
    assert np.abs(steps["b"] - sound["b"]).max() > 0, "tensors are coupled"
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_loss_that_is_not_finite_is_not_averaged(small, run_small):
    theta, params, grads, _ = small
    losses = np.float32([2.0, np.nan, np.inf])
    steps, state = run_small(theta, params, grads, losses)
    assert state.train_loss.losses == 1 and np.isclose(state.train_loss.mean, 0.2)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(steps))


def test_mu_p_scales_the_step_and_unscales_the_gradient(small, run_small):
    """At twice the base width, gradients and hidden matrices' steps are halved."""
    theta, params, grads, losses = small
    first = [jax.tree.map(lambda g: g[:1], grads), losses[:1]]
    doubled = [jax.tree.map(lambda g: 2 * g, first[0]), first[1]]
    run = last_step(dataclasses.replace(SMALL, rules=ADAM_LIKE), SPECS)
    mup, _ = run(theta, params, *first)
    standard, _ = run_small(theta, params, *doubled)
    for name, factor in (("a", 0.5), ("s", 0.5), ("b", 1.0)):
        np.testing.assert_array_equal(mup[name], factor * standard[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lstm_size": 0}, "lstm_size = 0 must be a positive"),
        ({"step_mult": 0.0}, "step_mult = 0.0 must lie in"),
        ({"exp_mult": float("inf")}, "exp_mult = inf"),
        ({"decays": (0.5, 1.0)}, "decays: decay 1.0 must lie in"),
        ({"rules": SGD_LIKE}, "rules = Rules.SGD_LIKE must be"),
    ],
)
def test_wrong_fields(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RNNMLP(), **change)


def test_it_needs_the_loss(small):
    theta, params, grads, _ = small
    rule = SMALL.as_optax(theta, SPECS, 10)
    state = rule.init(params)
    with pytest.raises(ValueError, match="RNNMLP needs the loss"):
        rule.update(jax.tree.map(lambda g: g[0], grads), state, params)
    with pytest.raises(ValueError, match="RNNMLP needs params"):
        rule.update(jax.tree.map(lambda g: g[0], grads), state, loss=1.0)


def test_without_output_scale_the_network_says_nothing():
    theta = quick(RNNMLP(output_scale=0.0, hidden_layers=1).init)(jax.random.key(0))
    assert not np.any(theta["layer_1"]["kernel"]) and np.any(theta["layer_0"]["kernel"])
