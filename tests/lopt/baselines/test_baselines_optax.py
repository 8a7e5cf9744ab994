"""Every baseline is optax's, bit for bit at the base width, and what the papers say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from lopt import SGD, Adafactor, Adam, Lion, Muon, Prodigy, ScheduleFreeAdamW
from lopt.schedules import Constant, InfiniteSchedule
from parametrization import ADAM_LIKE, SGD_LIKE, Axes, ParamSpec

NUM_STEPS = 6
SHAPES = {
    "b": ("-> width", (8,)),
    "in": ("pixels -> width", (3, 8)),
    "w": ("width -> mlp", (8, 4)),
}
SPECS = {n: ParamSpec(Axes.parse(a), s, s) for n, (a, s) in SHAPES.items()}
MATRICES = {"b": None, "in": None, "w": contrib.MuonDimensionNumbers()}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)

    def draw(*lead):
        return {
            n: np.float32(rng.normal(size=lead + s.shape)) for n, s in SPECS.items()
        }

    return draw(), draw(NUM_STEPS)


def warm(rate):
    """`Constant(warmup=2, unit="steps")` by optax."""
    return optax.warmup_constant_schedule(0.0, rate, 2)


PAIRS = {
    "sgd, nesterov": (
        SGD(0.02, momentum=0.9, nesterov=True, rules=SGD_LIKE),
        lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    ),
    "nadamw": (
        Adam(0.01, weight_decay=0.3, nesterov=True, rules=ADAM_LIKE),
        lambda rate: optax.nadamw(rate, weight_decay=0.3),
    ),
    "lion": (
        Lion(0.01, b1=0.8, b2=0.95, weight_decay=0.1, rules=ADAM_LIKE),
        lambda rate: optax.lion(rate, b1=0.8, b2=0.95, weight_decay=0.1),
    ),
    "lion, warm-up": (
        Lion(0.01, Constant(2, unit="steps")),
        lambda rate: optax.lion(warm(rate), weight_decay=0.0),
    ),
    "muon": (
        Muon(0.02, weight_decay=0.1, rules=ADAM_LIKE),
        lambda rate: contrib.muon(
            rate,
            weight_decay=0.1,
            adam_weight_decay=0.1,
            muon_weight_dimension_numbers=MATRICES,
        ),
    ),
    "muon, consistent rms": (
        Muon(0.02, scaling="consistent_rms", nesterov=False, rules=ADAM_LIKE),
        lambda rate: contrib.muon(
            rate,
            nesterov=False,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=MATRICES,
        ),
    ),
    "adafactor": (
        Adafactor(0.05, min_dim_size_to_factor=4),
        lambda rate: optax.adafactor(rate, min_dim_size_to_factor=4),
    ),
    "adafactor, absolute": (
        Adafactor(
            0.05,
            min_dim_size_to_factor=4,
            multiply_by_parameter_scale=False,
            rules=ADAM_LIKE,
        ),
        lambda rate: optax.adafactor(
            rate,
            min_dim_size_to_factor=4,
            multiply_by_parameter_scale=False,
        ),
    ),
    "schedule-free adamw": (
        ScheduleFreeAdamW(0.05, weight_decay=0.1, rules=ADAM_LIKE),
        lambda rate: contrib.schedule_free_adamw(rate, weight_decay=0.1),
    ),
    "schedule-free adamw, warm-up": (
        ScheduleFreeAdamW(0.05, Constant(2, unit="steps"), b1=0.95, rules=ADAM_LIKE),
        lambda rate: contrib.schedule_free_adamw(rate, warmup_steps=2, b1=0.95),
    ),
    "prodigy": (
        Prodigy(0.5, first_estimate=0.01, weight_decay=0.1, rules=ADAM_LIKE),
        lambda rate: contrib.prodigy(rate, estim_lr0=0.01, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_at_the_base_width_it_is_optax_s_bit_for_bit(run, inputs, name):
    baseline, theirs = PAIRS[name]
    params, grads = inputs
    make = functools.partial(baseline.as_optax, specs=SPECS, num_steps=NUM_STEPS)
    got, _ = run(make, params, grads, baseline.init(None))
    # A traced learning rate on their side too: a constant is folded before rounding.
    want, _ = run(theirs, params, grads, np.float32(baseline.learning_rate))
    for leaf in SPECS:
        assert np.abs(want[leaf][-1] - params[leaf]).max() > 1e-3
        if isinstance(baseline, Prodigy):  # leaving steps out is fused: one bit
            np.testing.assert_allclose(got[leaf], want[leaf], rtol=2e-7, atol=2e-8)
        else:
            np.testing.assert_array_equal(got[leaf], want[leaf])


def test_adafactor_s_weight_decay_is_multiplied_by_the_learning_rate(run, inputs):
    # optax's is not: its rate is ours times the learning rate. Not to the bit, because
    # the compiler contracts the sum differently.
    params, grads = inputs
    ours = Adafactor(0.05, weight_decay=0.5)
    make = functools.partial(ours.as_optax, specs=SPECS, num_steps=NUM_STEPS)
    got, _ = run(make, params, grads, ours.init(None))
    want, _ = run(lambda: optax.adafactor(0.05, weight_decay_rate=0.025), params, grads)
    for leaf in SPECS:
        np.testing.assert_allclose(got[leaf], want[leaf], rtol=1e-6, atol=1e-7)


class Reference:
    """One tensor in float64; `step(t, g)` with t from 1 moves `self.p`."""

    def __init__(self, p):
        self.p = self.z = self.x = self.start = np.float64(p)
        self.m = self.v = self.s = self.weights = self.numerator = 0.0
        self.d = 0.01

    def nesterov(self, t, g):
        self.m = 0.9 * self.m + g
        self.p = self.p - 0.02 * (g + 0.9 * self.m)

    def nadam(self, t, g):
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        m = 0.9 * self.m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        self.p = self.p - 0.01 * m / (np.sqrt(self.v / (1 - 0.999**t)) + 1e-8)

    def schedule_free(self, t, g):
        self.v = 0.999 * self.v + 0.001 * g**2
        self.z = self.z - 0.05 * g / (np.sqrt(self.v / (1 - 0.999**t)) + 1e-8)
        self.x = self.x + (self.z - self.x) / t
        self.p = 0.1 * self.z + 0.9 * self.x

    def prodigy(self, t, g):
        d, b3 = self.d, np.sqrt(0.999)
        step = d * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        self.numerator = b3 * self.numerator
        self.numerator += d / 0.01 * step * (g * (self.start - self.p)).sum()
        self.s = b3 * self.s + d / 0.01 * step * g
        self.m = 0.9 * self.m + 0.1 * d * g
        self.v = 0.999 * self.v + 0.001 * (d * g) ** 2
        self.d = max(d, self.numerator / np.abs(self.s).sum())
        self.p = self.p - step * self.m / (np.sqrt(self.v) + self.d * 1e-8)


@pytest.mark.parametrize(
    ("baseline", "rule"),
    [
        (SGD(0.02, momentum=0.9, nesterov=True), Reference.nesterov),
        (Adam(0.01, nesterov=True), Reference.nadam),
        (ScheduleFreeAdamW(0.05), Reference.schedule_free),
        (Prodigy(first_estimate=0.01), Reference.prodigy),
    ],
)
def test_against_the_papers_in_float64(run, inputs, baseline, rule):
    params, grads = ({"w": x["w"]} for x in inputs)
    grads = {"w": grads["w"] + 1.0}  # a direction, so that Prodigy's estimate grows
    make = functools.partial(baseline.as_optax, specs={"w": SPECS["w"]}, num_steps=6)
    path, _ = run(make, params, grads, baseline.init(None))
    reference = Reference(params["w"])
    for t, grad in enumerate(np.float64(grads["w"]), 1):
        rule(reference, t, grad)
        np.testing.assert_allclose(path["w"][t - 1], reference.p, rtol=1e-5, atol=2e-6)
    if rule is Reference.prodigy:
        assert reference.d > 0.011


GRID = {
    "sgd": SGD(momentum=0.9, nesterov=True),
    "lion": Lion(schedule="cosine"),
    "muon": Muon(schedule=InfiniteSchedule()),
    "adafactor": Adafactor(min_dim_size_to_factor=4),
    "schedule-free": ScheduleFreeAdamW(schedule=Constant(0.3)),
    "prodigy": Prodigy(first_estimate=0.01),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in ("muon", "prodigy") else [pytest.mark.slow])
        for n in GRID
    ],
)
def test_a_grid_of_learning_rates_is_one_program(run, inputs, name):
    params, grads = inputs
    rates = np.float32([0.01, 0.02])

    def one(theta, num_steps):
        return GRID[name].as_optax(theta, SPECS, num_steps)

    def both(rates, num_steps):
        """A transformation of stacked parameters, vmapped over learning rates."""

        def init(stacked):
            rule = one({"learning_rate": rates[0]}, num_steps)
            return jax.vmap(rule.init)(stacked)

        def update(updates, state, stacked):
            def step(rate, g, s, p):
                return one({"learning_rate": rate}, num_steps).update(g, s, p)

            return jax.vmap(step)(rates, updates, state, stacked)

        return optax.GradientTransformation(init, update)

    twice = jax.tree.map(lambda x: np.stack([x, x]), params)
    same = jax.tree.map(lambda x: np.stack([x, x], axis=1), grads)
    grid, _ = run(both, twice, same, rates, jnp.int32(NUM_STEPS))
    alone, _ = run(
        one, params, grads, {"learning_rate": rates[1]}, jnp.int32(NUM_STEPS)
    )
    for leaf in SPECS:
        np.testing.assert_allclose(grid[leaf][:, 1], alone[leaf], rtol=1e-5, atol=1e-6)
        assert np.abs(grid[leaf][-1, 1] - grid[leaf][-1, 0]).max() > 1e-4


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Lion(rules=SGD_LIKE), "rules = SGD_LIKE .* use ADAM_LIKE"),
        (lambda: Muon(rules=SGD_LIKE), "rules = SGD_LIKE"),
        (lambda: Prodigy(rules=SGD_LIKE), "rules = SGD_LIKE"),
        (lambda: ScheduleFreeAdamW(rules=SGD_LIKE), "rules = SGD_LIKE"),
        (
            lambda: Adafactor(rules=ADAM_LIKE),
            "rules = ADAM_LIKE cannot .* multiply_by_parameter_scale = False",
        ),
        (lambda: SGD(nesterov=True), "nesterov = True needs a momentum"),
        (lambda: Lion(b1=1.0), "b1 = 1.0"),
        (lambda: Lion(weight_decay=-1.0), "weight_decay = -1.0"),
        (lambda: Muon(scaling="rms"), "scaling = 'rms' must be one of"),
        (lambda: Muon(newton_schulz_steps=0), "newton_schulz_steps = 0"),
        (lambda: Muon(learning_rate=float("nan")), "learning_rate = nan"),
        (lambda: Adafactor(eps=0.0), "eps = 0.0"),
        (lambda: ScheduleFreeAdamW(b1=0.0), "b1 = 0.0"),
        (lambda: Prodigy(first_estimate=0.0), "first_estimate = 0.0"),
    ],
)
def test_impossible_fields_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
