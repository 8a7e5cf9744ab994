"""Learned scalars: optax's rules at the same numbers, and their gradients in θ."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.learned.learnable import LearnableAdam, LearnableSGD, LearnableSGDM, decay
from parametrization import ADAM_LIKE, SGD_LIKE, STANDARD, Axes, ParamSpec

NUM_STEPS = 8
SPECS = {
    "b": ParamSpec(Axes.parse("-> width"), (8,), (2,)),
    "out": ParamSpec(Axes.parse("width -> classes"), (8, 3), (2, 3)),
    "w": ParamSpec(Axes.parse("width -> width"), (8, 8), (2, 2)),
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


def path(make, inputs, *arguments):
    @jax.jit
    def run(params, grads, *arguments):
        rule = make(*arguments)

        def step(carry, grad):
            updates, state = rule.update(grad, carry[1], carry[0])
            params = optax.apply_updates(carry[0], updates)
            return (params, state), params

        (_, state), values = jax.lax.scan(step, (params, rule.init(params)), grads)
        return values, state

    return jax.tree.map(np.asarray, run(*inputs, *arguments))


def ours(lopt):
    return lambda theta: lopt.as_optax(theta, SPECS, NUM_STEPS)


PAIRS = {
    "sgd": (LearnableSGD(0.02), optax.sgd(0.02)),
    "momentum": (LearnableSGDM(0.02, 0.8), optax.sgd(0.02, momentum=0.8)),
    "adam": (
        LearnableAdam(0.01, 0.8, 0.95, 1e-6),
        optax.adam(0.01, b1=0.8, b2=0.95, eps=1e-6),
    ),
    "default adam": (LearnableAdam(), optax.adam(1e-3)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_initial_theta_is_optax_s_rule(inputs, name):
    lopt, theirs = PAIRS[name]
    got, _ = path(ours(lopt), inputs, lopt.init(jax.random.key(0)))
    want, _ = path(lambda: theirs, inputs)
    for leaf in SPECS:
        assert np.abs(want[leaf][-1] - inputs[0][leaf]).max() > 1e-3
        # The default 1 − β₂ = .001 is rounded to 6e-5 of itself in optax's float32.
        np.testing.assert_allclose(got[leaf], want[leaf], rtol=2e-6, atol=2e-7)


def adam_in_float64(params, grads, rate, b1, b2, eps):
    m = v = 0.0
    for t, g in enumerate(grads.astype(np.float64), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        params = params - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        yield params


def momentum_in_float64(params, grads, rate, momentum):
    m = 0.0
    for g in grads.astype(np.float64):
        m = momentum * m + g
        params = params - rate * m
        yield params


def test_float64_in_closed_form(inputs):
    numbers = (0.03, 0.7, 0.97, 1e-3)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, inputs)
        theta = {
            "log_learning_rate": np.log(0.03),
            "log_b1_complement": np.log(0.3),
            "log_b2_complement": np.log(0.03),
            "log_eps": np.log(1e-3),
        }
        adam, _ = path(ours(LearnableAdam()), wide, theta)
        theta = {
            "log_learning_rate": np.log(0.03),
            "log_momentum_complement": np.log(0.3),
        }
        momentum, _ = path(ours(LearnableSGDM()), wide, theta)
    for leaf in SPECS:
        start, grads = inputs[0][leaf].astype(np.float64), inputs[1][leaf]
        want = np.stack(list(adam_in_float64(start, grads, *numbers)))
        np.testing.assert_allclose(adam[leaf], want, rtol=0, atol=1e-12)
        want = np.stack(list(momentum_in_float64(start, grads, 0.03, 0.7)))
        np.testing.assert_allclose(momentum[leaf], want, rtol=0, atol=1e-12)


def test_float32_keeps_the_digits_of_long_decays(inputs):
    """1 − β₂ᵗ begins at 10⁻⁵: from a rounded β₂ it would be off by 10⁻³ of itself."""
    lopt = LearnableAdam(0.01, 0.99, 0.99999, 1e-8)
    theta = lopt.init(jax.random.key(0))
    zero = jax.tree.map(np.zeros_like, inputs[0])
    got, _ = path(ours(lopt), (zero, inputs[1]), theta)
    numbers = {k: np.exp(np.float64(x)) for k, x in theta.items()}
    decays = (1 - numbers[f"log_{name}_complement"] for name in ("b1", "b2"))
    exact = (numbers["log_learning_rate"], *decays, numbers["log_eps"])
    for leaf in SPECS:
        want = np.stack(list(adam_in_float64(0.0, inputs[1][leaf], *exact)))
        np.testing.assert_allclose(got[leaf], want, rtol=0, atol=2e-6 * want.max())


def test_derivatives_are_finite_where_nothing_is_averaged(inputs):
    lopt = LearnableAdam(0.01, 0.0, 0.0)

    def last(theta):
        rule, (params, grads) = ours(lopt)(theta), inputs
        state = rule.init(params)
        for i in range(2):
            step, state = rule.update({n: g[i] for n, g in grads.items()}, state)
        return sum(jnp.sum(x) for x in jax.tree.leaves(step))

    derivatives = jax.jit(jax.grad(last))(lopt.init(jax.random.key(0)))
    assert all(np.isfinite(x) for x in derivatives.values())


def test_a_decay_stays_a_decay_wherever_theta_goes():
    got = decay(jnp.log(jnp.float32([0.1, 1.0, 5.0])))
    np.testing.assert_allclose(got, [0.9, 0.0, 0.0], atol=1e-7)


@pytest.mark.parametrize(
    ("lopt", "rules"),
    [
        (LearnableSGD(0.5), SGD_LIKE),
        (LearnableSGDM(0.5, 0.5), SGD_LIKE),
        (LearnableAdam(0.5, 0.5, 0.75, 1e-12), ADAM_LIKE),
    ],
)
def test_mu_p_is_one_factor_a_tensor(inputs, lopt, rules):
    """Width 8 over base 2; Adam's unscaled gradients do not change its step."""
    mup = type(lopt)(**{**vars(lopt), "rules": rules})
    theta = lopt.init(jax.random.key(0))
    zero = jax.tree.map(np.zeros_like, inputs[0])
    standard, _ = path(ours(lopt), (zero, inputs[1]), theta)
    scaled, _ = path(ours(mup), (zero, inputs[1]), theta)
    factors = {"b": 4.0, "out": 4.0, "w": 1.0} if rules is SGD_LIKE else {"w": 0.25}
    for leaf in SPECS:
        want = factors.get(leaf, 1.0) * standard[leaf]
        np.testing.assert_allclose(scaled[leaf], want, rtol=1e-5, atol=1e-6)


def test_the_floor_of_mu_adam_falls_as_the_gradients_do(inputs):
    """With a large ε, the step is proportional to 4 times this gradient, the base's."""
    lopt = LearnableAdam(0.5, 0.5, 0.75, 1e6, rules=ADAM_LIKE)
    zero = jax.tree.map(np.zeros_like, inputs[0])
    got, _ = path(ours(lopt), (zero, inputs[1]), lopt.init(jax.random.key(0)))
    for leaf, scale in (("b", 4.0), ("out", 4.0), ("w", 4.0 / 4.0)):
        want = -0.5 * scale * inputs[1][leaf][0] / 1e6
        np.testing.assert_allclose(got[leaf][0], want, rtol=1e-4)


def test_half_precision_keeps_its_type_and_sums_in_single(inputs):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs)
    lopt = LearnableSGDM()
    values, state = path(ours(lopt), half, lopt.init(jax.random.key(0)))
    assert {v.dtype for v in values.values()} == {jnp.dtype(jnp.bfloat16)}
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(state))
    want = sum(0.9**k * np.float32(half[1]["w"][NUM_STEPS - 1 - k]) for k in range(8))
    (trace,) = [x for x in jax.tree.leaves(state) if x.shape == (8, 8)]
    np.testing.assert_allclose(trace, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnableSGD(0.0), "initial_learning_rate = 0.0 must be positive"),
        (lambda: LearnableSGD(rules=ADAM_LIKE), "rules = ADAM_LIKE"),
        (lambda: LearnableSGDM(initial_momentum=1.0), "initial_momentum = 1.0"),
        (lambda: LearnableSGDM(rules=ADAM_LIKE), "rules = ADAM_LIKE"),
        (lambda: LearnableAdam(initial_b2=-0.1), "initial_b2 = -0.1 must lie in"),
        (lambda: LearnableAdam(initial_eps=0.0), "initial_eps = 0.0"),
        (lambda: LearnableAdam(rules=SGD_LIKE), "rules = SGD_LIKE"),
    ],
)
def test_wrong_fields(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_theta_holds_logarithms():
    theta = LearnableAdam(0.1, 0.9, 0.99, 1e-8).init(jax.random.key(0))
    got = {name: float(value) for name, value in theta.items()}
    want = {
        "log_learning_rate": np.log(0.1),
        "log_b1_complement": np.log(0.1),
        "log_b2_complement": np.log(0.01),
        "log_eps": np.log(1e-8),
    }
    assert got == pytest.approx(want, rel=1e-6)
    assert LearnableSGD().rules is STANDARD
