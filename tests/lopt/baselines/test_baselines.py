"""The baselines are optax's optimizers, plus one factor for μP."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt import SGD, Adam
from parametrization import ADAM_LIKE, COMPLETEP, SGD_LIKE, Axes, ParamSpec

NUM_STEPS = 8


def spec_of(axes, shape, base_shape=None):
    return ParamSpec(Axes.parse(axes), shape, base_shape or shape)


SPECS = {
    "b": spec_of("-> width", (8,), (2,)),
    "in": spec_of("pixels -> width", (3, 8), (3, 2)),
    "out": spec_of("width -> classes", (8, 3), (2, 3)),
    "w": spec_of("width -> width", (8, 8), (2, 2)),
}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)

    def draw(*lead):
        return {
            name: rng.normal(size=lead + spec.shape).astype(np.float32)
            for name, spec in SPECS.items()
        }

    return draw(), draw(NUM_STEPS)


def ours(baseline):
    def make(theta):
        return baseline.as_optax(theta, SPECS, NUM_STEPS)

    return make, baseline.init(jax.random.key(0))


def compare(run, inputs, baseline, theirs):
    params, grads = inputs
    make, theta = ours(baseline)
    got, _ = run(make, params, grads, theta)
    want, _ = run(lambda: theirs, params, grads)
    for name in SPECS:
        assert np.abs(want[name][-1] - params[name]).max() > 1e-3
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-7)


def cosine(learning_rate):
    return optax.cosine_decay_schedule(learning_rate, NUM_STEPS)


PAIRS = {
    "adam": (
        Adam(0.01, b1=0.8, b2=0.95, eps=1e-6),
        optax.adam(0.01, b1=0.8, b2=0.95, eps=1e-6),
    ),
    "adam, cosine": (Adam(0.03, schedule="cosine"), optax.adam(cosine(0.03))),
    "adamw": (Adam(0.01, weight_decay=0.3), optax.adamw(0.01, weight_decay=0.3)),
    "adamw, cosine": (
        Adam(0.01, schedule="cosine", weight_decay=0.3),
        optax.adamw(cosine(0.01), weight_decay=0.3),
    ),
    "sgd": (SGD(0.02), optax.sgd(0.02)),
    "sgd, momentum": (SGD(0.02, momentum=0.9), optax.sgd(0.02, momentum=0.9)),
    "sgd, momentum, cosine": (
        SGD(0.02, schedule="cosine", momentum=0.9),
        optax.sgd(cosine(0.02), momentum=0.9),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_baseline_is_optax_s(run, inputs, name):
    compare(run, inputs, *PAIRS[name])


def test_the_cosine_in_closed_form(run):
    """Gradient 1, plain descent: the steps are the learning rates."""
    grads = {
        name: np.ones((12, *spec.shape), "float32") for name, spec in SPECS.items()
    }
    params = {name: np.zeros(spec.shape, "float32") for name, spec in SPECS.items()}
    make, theta = ours(SGD(0.5, schedule="cosine"))
    path = np.asarray(run(make, params, grads, theta)[0]["w"])[:, 0, 0]
    steps = -np.diff(path, prepend=0.0)
    t = np.arange(12)
    want = np.where(t < NUM_STEPS, 0.25 * (1 + np.cos(np.pi * t / NUM_STEPS)), 0.0)
    np.testing.assert_allclose(steps, want, atol=1e-6)
    assert want[0] == 0.5 and want[8] == 0.0


# Decays that float32 holds exactly, so that the bias corrections are exact too.
EXACT = Adam(0.5, b1=0.5, b2=0.75, eps=1e-12, rules=ADAM_LIKE)


def first_step(baseline, grads, params):
    make, theta = ours(baseline)
    transformation = make(theta)
    step = jax.jit(lambda g, p: transformation.update(g, transformation.init(p), p)[0])
    return jax.tree.map(np.asarray, step(grads, params))


def test_the_first_step_of_mu_adam_is_the_learning_rate_over_n(inputs):
    params, grads = inputs[0], {name: g[0] for name, g in inputs[1].items()}
    steps = first_step(EXACT, grads, params)
    for name, step in steps.items():
        n = 4.0 if name == "w" else 1.0
        np.testing.assert_allclose(step, -0.5 / n * np.sign(grads[name]), rtol=1e-6)


def test_mu_adam_is_adam_with_one_factor(run, inputs):
    params, grads = inputs
    make, theta = ours(Adam(0.01, rules=ADAM_LIKE))
    mup, _ = run(make, params, grads, theta)
    make, theta = ours(Adam(0.01))
    standard, _ = run(make, params, grads, theta)
    for name in SPECS:
        factor = 0.25 if name == "w" else 1.0
        moved, want = (x[name] - params[name] for x in (mup, standard))
        np.testing.assert_allclose(moved, factor * want, rtol=1e-4, atol=1e-6)


def test_the_epsilon_of_mu_adam_shrinks_as_gradients_do(inputs):
    # A network n times as wide has gradients 1/n times as large wherever the rules say
    # so; with an epsilon as large as the gradients, the step must still be the same.
    params, grads = inputs[0], {name: g[0] for name, g in inputs[1].items()}
    adam = Adam(0.1, eps=float(np.abs(grads["w"]).mean()), rules=ADAM_LIKE)
    base_specs = {
        name: ParamSpec(s.axes, s.shape, s.shape) for name, s in SPECS.items()
    }
    at_base = adam.as_optax(adam.init(None), base_specs, NUM_STEPS)
    want, _ = at_base.update(grads, at_base.init(params), params)
    small = {n: ADAM_LIKE.gradient_scale(SPECS[n]) * g for n, g in grads.items()}
    assert ADAM_LIKE.gradient_scale(SPECS["w"]) == 0.25
    got = first_step(adam, small, params)
    for name, step in got.items():
        factor = ADAM_LIKE.step_scale(SPECS[name])
        np.testing.assert_allclose(step, factor * want[name], rtol=1e-5)


def test_mu_sgd_scales_the_step_after_the_momentum(run, inputs):
    params, grads = inputs
    make, theta = ours(SGD(0.01, momentum=0.9, rules=SGD_LIKE))
    mup, _ = run(make, params, grads, theta)
    make, theta = ours(SGD(0.01, momentum=0.9))
    standard, _ = run(make, params, grads, theta)
    factors = {name: SGD_LIKE.step_scale(spec) for name, spec in SPECS.items()}
    assert factors["out"] == 4.0 and factors["w"] == 1.0 and factors["b"] == 4.0
    for name, factor in factors.items():
        moved, want = (x[name] - params[name] for x in (mup, standard))
        np.testing.assert_allclose(moved, factor * want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "rules"), [(Adam, SGD_LIKE), (SGD, ADAM_LIKE), (SGD, COMPLETEP)]
)
def test_the_columns_are_not_interchangeable(kind, rules):
    with pytest.raises(ValueError, match=f"rules = {rules.name} .* use "):
        kind(rules=rules)


def test_weight_decay_is_not_scaled_by_mup(inputs):
    params = inputs[0]
    none = jax.tree.map(np.zeros_like, params)
    steps = first_step(Adam(0.1, weight_decay=0.3, rules=ADAM_LIKE), none, params)
    for name, step in steps.items():
        np.testing.assert_allclose(step, -0.03 * params[name], rtol=1e-6)


def test_one_program_serves_a_grid_of_learning_rates(inputs):
    params, grads = inputs[0], {name: g[0] for name, g in inputs[1].items()}

    def step(learning_rate):
        lopt = Adam(schedule="cosine").as_optax(
            {"learning_rate": learning_rate}, SPECS, jnp.int32(NUM_STEPS)
        )
        return lopt.update(grads, lopt.init(params), params)[0]

    rates = np.float32([0.001, 0.002, 0.004])
    grid = jax.jit(jax.vmap(step))(rates)
    for name in SPECS:
        np.testing.assert_allclose(grid[name][2], 4 * grid[name][0], rtol=1e-5)


def test_mu_adam_beside_another_optimizer(inputs):
    params, grads = inputs[0], {name: g[0] for name, g in inputs[1].items()}
    make, theta = ours(EXACT)
    both = optax.multi_transform(
        {"adam": make(theta), "sgd": optax.sgd(0.5)},
        {"b": "sgd", "in": "adam", "out": "sgd", "w": "adam"},
    )
    steps, _ = jax.jit(both.update)(grads, both.init(params), params)
    np.testing.assert_allclose(steps["w"], -0.125 * np.sign(grads["w"]), rtol=1e-6)
    np.testing.assert_allclose(steps["out"], -0.5 * grads["out"], rtol=1e-6)


def test_theta_is_the_learning_rate():
    for baseline in (Adam(0.3), SGD(0.3)):
        theta = baseline.init(jax.random.key(0))
        assert theta == {"learning_rate": np.float32(0.3)}
        assert hash(baseline) == hash(type(baseline)(0.3))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Adam, "learning_rate", 0.0),
        (Adam, "learning_rate", float("nan")),
        (Adam, "eps", -1e-8),
        (Adam, "b1", 1.0),
        (Adam, "b2", -0.1),
        (Adam, "weight_decay", -0.5),
        (Adam, "weight_decay", float("inf")),
        (SGD, "learning_rate", -1.0),
        (SGD, "momentum", 1.0),
    ],
)
def test_impossible_hyperparameters_are_refused(kind, field, value):
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        kind(**{field: value})


@pytest.mark.parametrize("kind", [Adam, SGD])
def test_an_unknown_schedule_is_refused(kind):
    with pytest.raises(ValueError, match="schedule = 'linear'"):
        kind(schedule="linear")
