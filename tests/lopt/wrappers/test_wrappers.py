"""Wrappers in closed form, around Adam, around a rule that needs the loss, SmallFC."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt import SGD, Adam, ScheduleFreeAdamW, SmallFC, evaluation_params
from lopt.schedules import WarmupStableDecay
from lopt.wrappers import (
    AccumulatedGradients,
    ClippedGradients,
    RoleFallback,
    ScheduledSteps,
    StochasticBfloat16,
    WeightDecay,
    round_stochastically,
)
from parametrization import ADAM_LIKE, Axes, ParamSpec

SHAPES = {
    "b": ("-> width", (8,)),
    "e": ("vocab -> width", (5, 8)),
    "s": ("->", ()),
    "w": ("width -> width", (8, 8)),
}
SPECS = {
    name: ParamSpec(Axes.parse(axes), shape, tuple(min(n, 5) for n in shape))
    for name, (axes, shape) in SHAPES.items()
}
NUM_STEPS = 6
SPECS_OF_FEW = {name: SPECS[name] for name in ("b", "w")}


@dataclasses.dataclass(frozen=True)
class NeedsLoss:
    """Steps of −θ · loss · gradient; keeps the loss; masked tensors are left alone."""

    rate: float = 0.5

    def init(self, key):
        del key
        return {"rate": jnp.float32(self.rate)}

    def as_optax(self, theta, specs, num_steps):
        del specs

        def init(params):
            return {"loss": jnp.float32(0), "num_steps": jnp.asarray(num_steps)}

        def update(updates, state, params=None, *, loss=None, **extra_args):
            if loss is None:
                raise ValueError("this rule needs the loss: update(..., loss=loss)")
            steps = jax.tree.map(lambda g: -theta["rate"] * loss * g, updates)
            return steps, state | {"loss": loss}

        return optax.GradientTransformationExtraArgs(init, update)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)

    def draw(*lead):
        return {
            n: np.float32(rng.normal(size=lead + s.shape)) for n, s in SPECS.items()
        }

    return draw(), draw(NUM_STEPS), np.float32(rng.uniform(1, 2, NUM_STEPS))


@pytest.fixture(scope="module")
def few(inputs):
    """A vector and a matrix: learned rules take long to compile."""
    params, grads, losses = inputs
    return *({n: x[n] for n in ("b", "w")} for x in (params, grads)), losses


@pytest.fixture(scope="module")
def learned(few):
    return train(LEARNED, few)


def train(lopt, inputs, num_steps=NUM_STEPS, theta=None):
    """Parameters after each step, and the states, `[T]` in front."""
    theta = lopt.init(jax.random.key(0)) if theta is None else theta
    specs = {name: SPECS[name] for name in inputs[0]}

    @jax.jit
    def scan(theta, params, grads, losses, num_steps):
        rule = lopt.as_optax(theta, specs, num_steps)

        def step(carry, xs):
            params, state = carry
            updates, state = rule.update(xs[0], state, params, loss=xs[1])
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state)

        return jax.lax.scan(step, (params, rule.init(params)), (grads, losses))[1]

    return jax.tree.map(np.asarray, scan(theta, *inputs, jnp.int32(num_steps)))


SGD_1 = SGD(0.1)
LEARNED = SmallFC(hidden_size=4, step_mult=0.1, rules=ADAM_LIKE)
ALL = {
    "decay": lambda inner: WeightDecay(inner, 0.1),
    "schedule": lambda inner: ScheduledSteps(inner, 0.5, "cosine"),
    "clip": lambda inner: ClippedGradients(inner, 0.1),
    "accumulate": lambda inner: AccumulatedGradients(inner, 2),
    "fallback": lambda inner: RoleFallback(inner, Adam(0.01)),
    "bfloat16": StochasticBfloat16,
}


def nested(inner):
    for wrap in reversed(ALL.values()):
        inner = wrap(inner)
    return inner


def test_decay_in_closed_form(inputs):
    got, _ = train(WeightDecay(SGD_1, 0.25, kinds=("hidden", "vector")), inputs)
    for name, decay in {"b": 0.25, "e": 0.0, "s": 0.0, "w": 0.25}.items():
        p = np.float64(inputs[0][name])
        for t in range(NUM_STEPS):
            p = p - 0.1 * inputs[1][name][t] - decay * p
            np.testing.assert_allclose(got[name][t], p, rtol=1e-5, atol=1e-6)


def test_rate_times_step_and_decay(inputs):
    # p − rate·(step + decay·p) where the decay is inside, as AdamW has it.
    schedule = WarmupStableDecay(warmup=0.34, decay=0.34)
    everywhere = ("hidden", "input", "scalar", "vector")
    ours = ScheduledSteps(WeightDecay(Adam(1.0), 0.3, kinds=everywhere), 0.02, schedule)
    got, _ = train(ours, inputs)
    want, _ = train(Adam(0.02, schedule=schedule, weight_decay=0.3), inputs)
    for name in SPECS:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-7)


def test_a_schedule_scales_the_steps_of_a_learned_rule(few, learned):
    # Gradients are given, so only the parameters it sees differ: compare first steps.
    scaled, _ = train(ScheduledSteps(LEARNED, 0.25), few)
    for name in few[0]:
        step, quarter = (x[name][0] - few[0][name] for x in (learned[0], scaled))
        assert np.abs(step).max() > 1e-3
        np.testing.assert_allclose(quarter, step / 4, rtol=1e-3, atol=1e-6)


def test_clipping_is_optax_s(inputs):
    params, grads, losses = inputs
    sizes = np.float32([0.01, 1.0, 3.0, 0.02, 10.0, 1.0])  # some are left as they are
    grads = {n: g * sizes.reshape(-1, *[1] * (g.ndim - 1)) for n, g in grads.items()}
    got, _ = train(ClippedGradients(SGD_1, 2.0), (params, grads, losses))
    path = {n: [params[n]] for n in SPECS}
    for t in range(NUM_STEPS):
        norm = np.sqrt(sum(np.sum(np.float64(g[t]) ** 2) for g in grads.values()))
        assert (norm < 2) == (sizes[t] < 1)
        for n, g in grads.items():
            path[n].append(path[n][-1] - 0.1 * g[t] * min(1.0, 2.0 / norm))
    for n in SPECS:
        np.testing.assert_allclose(got[n], path[n][1:], rtol=1e-5, atol=1e-6)


def test_a_gradient_whose_norm_is_not_finite_counts_as_zero(inputs):
    params, grads, losses = inputs
    grads = {n: g.copy() for n, g in grads.items()}
    grads["w"][1:5, 0, 0] = np.inf, -np.inf, np.nan, 1e30
    got, _ = train(ClippedGradients(SGD_1, 2.0), (params, grads, losses))
    for name in SPECS:
        assert np.isfinite(got[name]).all() and (got[name][0] != params[name]).all()
        for t in range(1, 5):
            np.testing.assert_array_equal(got[name][t], got[name][0])
        assert (got[name][5] != got[name][4]).all()


def test_accumulation_is_one_step_for_the_mean(inputs):
    got, _ = train(AccumulatedGradients(Adam(0.1, schedule="cosine"), 2), inputs)
    means = {n: g.reshape(3, 2, *g.shape[1:]).mean(1) for n, g in inputs[1].items()}
    losses = inputs[2].reshape(3, 2).mean(1)
    # The inner run has 3 steps: its cosine ends where the outer one does.
    want, _ = train(Adam(0.1, schedule="cosine"), (inputs[0], means, losses), 3)
    for name in SPECS:
        np.testing.assert_array_equal(got[name][0], inputs[0][name])
        np.testing.assert_array_equal(got[name][2], got[name][1])
        np.testing.assert_allclose(got[name][1::2], want[name], rtol=1e-5, atol=1e-6)


def test_accumulation_averages_the_loss_and_counts_its_own_steps(inputs):
    got, states = train(AccumulatedGradients(NeedsLoss(), 3), inputs, num_steps=7)
    inner = states.steps.inner_opt_state
    losses = inputs[2].reshape(2, 3).mean(1)
    np.testing.assert_allclose(inner["loss"][[2, 5]], losses, rtol=1e-6)
    assert inner["loss"][1] == 0.0 and inner["num_steps"][0] == 2
    mean = inputs[1]["w"][:3].mean(0)
    want = inputs[0]["w"] - 0.5 * losses[0] * mean
    np.testing.assert_allclose(got["w"][2], want, rtol=1e-5, atol=1e-6)


def test_fallback_by_role(inputs):
    mixed = RoleFallback(SGD_1, Adam(0.01, weight_decay=0.1), ("vector", "input"))
    got, _ = train(mixed, inputs)
    adam, _ = train(Adam(0.01, weight_decay=0.1), inputs)
    sgd, _ = train(SGD_1, inputs)
    for name in SPECS:
        want = adam if name in "be" else sgd
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-7)


def test_a_learned_rule_with_a_fallback_moves_its_own_tensors_as_before(few, learned):
    got, _ = train(RoleFallback(LEARNED, Adam(0.01)), few)
    adam, _ = train(Adam(0.01), few)
    for name, want in {"w": learned[0], "b": adam}.items():
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)


def test_rounding_is_unbiased():
    # Numbers of every size between two bfloat16 neighbours, many roundings of each.
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=64) * np.exp(rng.normal(size=64) * 10))
    keys = jax.random.split(jax.random.key(0), 4000)
    rounded = jax.jit(jax.vmap(round_stochastically, in_axes=(None, 0)))(x, keys)
    draws = np.asarray(rounded, np.float64)
    below = np.float64((x.view(np.uint32) & 0xFFFF0000).view(np.float32))
    above = np.float64(((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32))
    assert ((draws == below) | (draws == above)).all()
    share = (x - below) / (above - below)
    error = np.sqrt(share * (1 - share) / len(keys))
    z = ((draws == above).mean(0) - share) / error
    assert np.abs(z).max() < 4 and 0.7 < z.std() < 1.3


def test_what_bfloat16_holds_does_not_move():
    exact = np.float32([0.0, -0.0, 1.0, -1.5, 2.0**-130, 3e38, np.inf, -np.inf])
    exact = np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float32)
    nan = np.uint32([0x7F800001, 0xFFFFFFFF]).view(np.float32)  # of any kind
    x = np.concatenate([exact, nan])
    keys = jax.random.split(jax.random.key(1), 20)
    rounded = jax.jit(jax.vmap(round_stochastically, in_axes=(None, 0)))
    once, again = (np.asarray(rounded(x, keys), np.float32) for _ in range(2))
    np.testing.assert_array_equal(once, again)  # the same key, the same bits
    np.testing.assert_array_equal(once[:, :-2], np.tile(exact, (20, 1)))
    assert np.isnan(once[:, -2:]).all()


def test_accumulators_in_bfloat16_do_not_stand_still():
    # A mean of squares with decay .999 of a gradient 1: 1 − .999^t. Rounded to nearest
    # it stands still where its increments are less than half a step of bfloat16.
    n, steps = 512, 600
    spec = ParamSpec(Axes.parse("-> width"), (n,), (n,))
    rule = StochasticBfloat16(Adam(0.0001)).as_optax(
        {"learning_rate": jnp.float32(1e-4)}, {"x": spec}, steps
    )
    grads, params = {"x": jnp.ones(n)}, {"x": jnp.zeros(n)}

    @jax.jit
    def last():
        def step(state, _):
            return rule.update(grads, state, params)[1], None

        return jax.lax.scan(step, rule.init(params), length=steps)[0]

    (nu,) = (x for x in jax.tree.leaves(last().inner[1].nu))
    assert nu.dtype == jnp.bfloat16
    nu, want = np.float64(nu), 1 - 0.999**steps
    # Half of bfloat16's spacing at .45 is 1e-3; 512 elements average it out.
    assert abs(nu.mean() - want) < 4 * nu.std() / np.sqrt(n) and nu.std() > 0
    nearest = jnp.bfloat16(0)
    for _ in range(steps):
        nearest = jnp.bfloat16(0.999 * float(nearest) + 0.001)
    assert float(nearest) < 0.8 * want


def test_accumulators_of_adam_are_rounded_and_seeds_differ(few):
    once, state = train(StochasticBfloat16(Adam(0.01)), few)
    other, _ = train(StochasticBfloat16(Adam(0.01), seed=1), few)
    _, exact = train(Adam(0.01), few)
    assert (once["w"][-1] != other["w"][-1]).any()
    rounded, exact = state.inner[1], exact[1]
    assert rounded.count.dtype == np.int32 and state.step[-1] == NUM_STEPS
    for x, y in ((rounded.mu, exact.mu), (rounded.nu, exact.nu)):
        assert x["w"].dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.float64(x["w"]), y["w"], rtol=0.05, atol=0.01 * np.abs(y["w"]).max()
        )


@pytest.mark.slow
def test_a_learned_rule_in_bfloat16_moves_nearly_alike(few, learned):
    got, state = train(StochasticBfloat16(LEARNED), few)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(state.inner.tensors)}
    assert dtypes == {"bfloat16"} and state.inner.step.dtype == np.int32
    for name, want in learned[0].items():
        moved = np.abs(want - few[0][name]).max()
        assert 0 < np.abs(got[name] - want).max() < 0.1 * moved


@pytest.mark.parametrize("name", ALL)
def test_every_wrapper_passes_the_loss_on(few, name):
    lopt = ALL[name](NeedsLoss())
    got, _ = train(lopt, few)
    assert (got["w"][-1] != few[0]["w"]).all() and np.isfinite(got["w"]).all()

    def without(params):
        rule = lopt.as_optax({"rate": 0.5}, SPECS_OF_FEW, NUM_STEPS)
        return rule.update(params, rule.init(params), params)

    with pytest.raises(ValueError, match="needs the loss"):
        jax.eval_shape(without, few[0])


def test_all_wrappers_together(few):
    inner, lopt = LEARNED, nested(LEARNED)
    assert hash(lopt) == hash(nested(inner)) and lopt.rules is inner.rules
    theta = inner.init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, lopt.init(jax.random.key(3)), theta)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), few[0])
    grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), few[1])
    got, state = train(lopt, (params, grads, few[2]), theta=theta)
    for name in params:
        assert got[name].dtype == jnp.bfloat16
        assert np.isfinite(np.float32(got[name])).all()
    assert (got["w"][-1] != np.asarray(params["w"])).any()
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(state))


def test_the_average_of_a_schedule_free_rule_is_found_in_any_wrapper(few):
    free = ScheduleFreeAdamW(0.05)
    plain, state = train(free, few)
    want = evaluation_params(last(state), last(plain))
    assert np.abs(want["w"] - plain["w"][-1]).max() > 1e-3
    for wrapped in (ClippedGradients(free, 1e9), AccumulatedGradients(free, 1)):
        got, state = train(wrapped, few)
        got = evaluation_params(last(state), last(got))
        for name in few[0]:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
    # As a fallback it averages the tensors that are its own.
    got, state = train(RoleFallback(SGD_1, free, ("hidden",)), few)
    averaged = evaluation_params(last(state), last(got))
    np.testing.assert_allclose(averaged["w"], want["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(averaged["b"], got["b"][-1])


def last(tree):
    return jax.tree.map(lambda x: x[-1], tree)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: WeightDecay(SGD_1, -0.1), "weight_decay = -0.1"),
        (lambda: WeightDecay(SGD_1, 0.1, ("matrix",)), "'matrix' must be one of input"),
        (lambda: ScheduledSteps(SGD_1, 0.0), "learning_rate = 0.0"),
        (lambda: ScheduledSteps(SGD_1, 1.0, "linear"), "schedule = 'linear'"),
        (lambda: ClippedGradients(SGD_1, float("inf")), "max_norm = inf"),
        (lambda: AccumulatedGradients(SGD_1, 0), "num_batches = 0"),
        (lambda: RoleFallback(SGD_1, kinds=()), "kinds = .. must be some of"),
    ],
)
def test_impossible_fields_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("wrap", [WeightDecay, StochasticBfloat16])
def test_missing_parameters_are_named(inputs, wrap):
    rule = wrap(SGD_1).as_optax(SGD_1.init(None), SPECS, NUM_STEPS)
    with pytest.raises(ValueError, match=f"{wrap.__name__} needs params"):
        rule.update(inputs[0], rule.init(inputs[0]))


def test_one_spoilt_batch_spoils_one_update(few):
    """The next mean starts from nothing, and between updates nothing moves."""
    params, grads, _ = few
    rule = AccumulatedGradients(ClippedGradients(SGD(0.1)), 2)
    transformation = rule.as_optax(rule.init(None), SPECS_OF_FEW, 8)
    state = transformation.init(params)
    first = jax.tree.map(lambda g: jnp.asarray(g[0]), grads)
    spoilt = jax.tree.map(lambda g: g.at[..., 0].set(jnp.nan), first)
    moved = []
    for batch in (first, spoilt, first, first):
        steps, state = transformation.update(batch, state, params)
        moved.append([bool((x != 0).any()) for x in jax.tree.leaves(steps)])
    assert moved == [[False, False], [False, False], [False, False], [True, True]]


def test_what_is_wrapped_is_an_optimizer():
    with pytest.raises(
        ValueError, match=r"inner = .* must be of type LearnedOptimizer"
    ):
        ClippedGradients(optax.adam(1e-3))
