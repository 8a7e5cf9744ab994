"""Schedules in closed form: every boundary, continuity, traced arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.presets.serialization import decode, encode
from lopt import Adam, SmallFC
from lopt.learned.celo2 import Celo2
from lopt.learned.elo import ELO
from lopt.schedules import (
    Constant,
    InfiniteSchedule,
    WarmupCosine,
    WarmupStableDecay,
    learning_rate_schedule,
)
from lopt.wrappers import ScheduledSteps
from parametrization import infer_specs

T = 1000


def curve(schedule, num_steps=T, extra=0, rate=1.0):
    """Learning rates at steps 0 … num_steps + extra, float64 of the float32."""
    function = learning_rate_schedule(rate, schedule, num_steps)
    return values(function, np.arange(num_steps + extra + 1))


def values(function, steps):
    compiled = jax.jit(jax.vmap(function))
    return np.asarray(compiled(steps), np.float64)


def test_constant_after_a_warm_up():
    got = curve(Constant(warmup=0.1, initial=0.2))
    t = np.arange(T + 1)
    np.testing.assert_allclose(got, np.minimum(0.2 + 0.8 * t / 100, 1), rtol=1e-6)
    assert (curve(Constant(), rate=0.3) == np.float32(0.3)).all()


def test_warm_up_and_cosine_are_optax_s():
    schedule = WarmupCosine(warmup=0.05, initial=0.1, final=0.2)
    theirs = optax.warmup_cosine_decay_schedule(0.1, 1.0, 50, T, 0.2)
    got = curve(schedule, extra=100)
    np.testing.assert_allclose(got, values(theirs, np.arange(T + 101)), rtol=2e-6)
    assert (got[0], got[50], got[T]) == (np.float32(0.1), 1.0, np.float32(0.2))
    assert (got[T:] == np.float32(0.2)).all()


def test_without_a_warm_up_it_is_the_cosine_of_that_name():
    got = curve(WarmupCosine(warmup=0.0), extra=10)
    np.testing.assert_allclose(got, curve("cosine", extra=10), atol=1e-6)
    assert got[0] == 1.0 and got[T] == 0.0


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ("linear", lambda x: x),
        ("cosine", lambda x: (1 - np.cos(np.pi * x)) / 2),
        ("sqrt", np.sqrt),
    ],
)
def test_warm_up_stable_decay(shape, way):
    schedule = WarmupStableDecay(warmup=0.1, decay=0.3, final=0.25, shape=shape)
    got = curve(schedule, extra=50)
    t = np.arange(T + 51)
    x = np.clip((t - 700) / 300, 0, 1)
    want = np.where(t < 100, t / 100, 1 - 0.75 * way(x))
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert (got[100:701] == 1.0).all() and got[701] < 1 and (got[T:] == 0.25).all()


INFINITE = InfiniteSchedule()


def infinite(t, shape):
    """(e) of the published code: eta 1, .55, .1 and boundaries 10, 600, 850, 1000."""
    f = lambda x: 1 / np.sqrt(1 + 10 * x) - 1  # noqa: E731
    x = np.clip((t - 10) / 590, 0, 1)
    cooldown = {
        "linear": 1 - 0.45 * x,
        "cosine": 0.55 + 0.225 * (1 + np.cos(np.pi * x)),
        "inverse_sqrt": 1 + (0.55 - 1) * f(x) / f(1),
    }[shape]
    anneal = 0.55 * (0.1 / 0.55) ** np.clip((t - 850) / 150, 0, 1)
    return np.select([t <= 10, t <= 600, t <= 850], [t / 10, cooldown, 0.55], anneal)


@pytest.mark.parametrize("shape", ["linear", "cosine", "inverse_sqrt"])
def test_infinite(shape):
    got = curve(dataclasses.replace(INFINITE, shape=shape), extra=20)
    t = np.arange(T + 21)
    np.testing.assert_allclose(got, infinite(t, shape), rtol=3e-6, atol=1e-7)
    constant = np.float32(0.55)
    assert got[10] == 1.0 and (got[600:851] == constant).all() and got[599] > constant
    assert (got[T:] == np.float32(0.1)).all()
    np.testing.assert_allclose(got[925], np.sqrt(0.55 * 0.1), rtol=1e-6)
    assert (np.diff(got[10:]) <= 0).all()


def test_published_values_of_the_inverse_root():
    # 3e-4 to 1.65e-4 over 590 steps: 1.862e-4 at x = .4915.
    schedule = dataclasses.replace(INFINITE, shape="inverse_sqrt")
    got = curve(schedule, rate=3e-4)
    np.testing.assert_allclose(got[10 + 290], 1.862e-4, rtol=5e-4)
    np.testing.assert_allclose(got[600], 1.65e-4, rtol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupCosine(warmup=0.02),
        WarmupStableDecay(warmup=0.02, decay=0.1),
        InfiniteSchedule(warmup=0.02, cooldown=0.58),
        Constant(warmup=0.02),
    ],
)
def test_no_jump_is_larger_than_the_steepest_phase_s(schedule):
    # 1/20 of the warm-up; every other phase is flatter than that.
    assert np.abs(np.diff(curve(schedule, extra=5))).max() <= 1 / 20 + 1e-6


TRUNK = InfiniteSchedule(10, 50, 0, 0, unit="steps")


def test_the_trunk_does_not_depend_on_the_future():
    short, long = curve(TRUNK, 100), curve(TRUNK, 400)
    np.testing.assert_array_equal(short, long[:101])
    assert (long[60:] == np.float32(0.55)).all()


def test_a_branch_agrees_with_the_trunk_until_it_anneals():
    branch = dataclasses.replace(TRUNK, constant=140, annealing=40)  # at step 200
    trunk, got = curve(TRUNK, 400), curve(branch, 400)
    # Two programs may round a cosine differently, by one bit.
    np.testing.assert_allclose(got[:60], trunk[:60], rtol=1.2e-7)
    np.testing.assert_array_equal(got[60:201], trunk[60:201])
    assert got[201] < trunk[201] and got[240] == np.float32(0.1)


def test_steps_and_fractions_say_the_same():
    fractions = WarmupStableDecay(warmup=0.1, decay=0.3)
    steps = WarmupStableDecay(warmup=100, decay=300, unit="steps")
    np.testing.assert_array_equal(curve(fractions), curve(steps))
    # A run that is shorter than its phases warms up first, then decays.
    assert curve(steps, 200)[100] == 1.0 and curve(steps, 200)[200] == 0.0


def test_fractions_are_rounded_to_whole_steps():
    # .15 · 30 = 4.5 steps of warm-up and 25.5 until the decay: 4 and 26.
    got = curve(WarmupStableDecay(warmup=0.15, decay=0.15), 30)
    np.testing.assert_allclose(got[:6], [0, 0.25, 0.5, 0.75, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(got[26:], [1, 0.75, 0.5, 0.25, 0], atol=1e-6)


@pytest.mark.parametrize("schedule", [INFINITE, WarmupStableDecay(), WarmupCosine()])
def test_everything_may_be_traced(schedule):
    def value(rate, num_steps, step):
        return learning_rate_schedule(rate, schedule, num_steps)(step)

    grid = jax.jit(jax.vmap(value, in_axes=(0, 0, None)))
    got = grid(jnp.float32([0.5, 2.0]), jnp.int32([1000, 100]), jnp.int32(57))
    want = [0.5 * curve(schedule)[57], 2.0 * curve(schedule, 100)[57]]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_run_of_no_steps_is_finite():
    for schedule in (INFINITE, WarmupStableDecay(), WarmupCosine(), Constant(0.1)):
        assert np.isfinite(curve(schedule, 0, extra=3)).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Constant(warmup=-0.1), "warmup = -0.1"),
        (
            lambda: Constant(warmup=10),
            r"warmup = 10\.0 must be at most 1.*unit='steps'",
        ),
        (lambda: WarmupCosine(final=1.5), "final = 1.5"),
        (lambda: WarmupCosine(unit="epochs"), "unit = 'epochs'"),
        (lambda: WarmupStableDecay(10.5, unit="steps"), "warmup = 10.5 .* whole"),
        (lambda: WarmupStableDecay(0.6, 0.6), "warmup = 0.6 . decay = 0.6 must be"),
        (lambda: WarmupStableDecay(shape="steep"), "shape = 'steep'"),
        (lambda: InfiniteSchedule(cooldown=float("nan")), "cooldown = nan"),
        (lambda: InfiniteSchedule(final=0.0), "final = 0.0 must be positive"),
        (lambda: InfiniteSchedule(level_constant=0.05), "final = 0.1 .* = 0.05"),
        (lambda: Adam(schedule=0.1), "schedule = 0.1 must be one of"),
    ],
)
def test_impossible_phases_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("schedule", ["cosine", INFINITE, WarmupStableDecay()])
def test_a_baseline_with_a_schedule_survives_json(schedule):
    adam = Adam(0.01, schedule=schedule)
    assert decode(Adam, encode(adam)) == adam


def test_an_unknown_name_of_a_schedule_is_refused_from_json():
    data = encode(Adam()) | {"schedule": "linear"}
    with pytest.raises(ValueError, match="schedule = 'linear' must be one of"):
        decode(Adam, data)


RAMP = optax.linear_schedule(1e-2, 0.0, 4)
RATED = [Celo2(), ELO(hidden_size=4), ScheduledSteps(SmallFC(hidden_size=4))]


@pytest.mark.parametrize("rule", RATED, ids=lambda rule: type(rule).__name__)
def test_rates_from_optax(rule):
    """A schedule of optax, and a rate that `inject_hyperparams` sets step by step."""
    params = {"w": jnp.ones((4, 3))}
    specs, theta = infer_specs(params, params), rule.init(jax.random.key(0))

    def make(learning_rate):
        changed = dataclasses.replace(rule, learning_rate=learning_rate)
        return changed.as_optax(theta, specs, 10)

    def path(optimizer):
        moved, state = params, optimizer.init(params)
        for _ in range(5):
            updates, state = optimizer.update(params, state, moved)
            moved = optax.apply_updates(moved, updates)
        return moved["w"]

    scheduled = dataclasses.replace(rule, schedule=RAMP).as_optax(theta, specs, 10)
    want = path(optax.chain(make(1.0), optax.scale_by_schedule(RAMP)))
    injected = optax.inject_hyperparams(make)(learning_rate=RAMP)
    for optimizer in (scheduled, injected):
        np.testing.assert_allclose(path(optimizer), want, rtol=1e-5)


def test_rates_that_are_refused():
    for fields, message in (
        ({"learning_rate": "fast"}, "learning_rate = 'fast' must be a number"),
        ({"learning_rate": RAMP}, "give it as schedule="),
        ({"learning_rate": jnp.float32(-0.1)}, "must not be negative"),
        ({"learning_rate": jnp.float32(jnp.nan)}, "must not be negative"),
        ({"learning_rate": jnp.complex64(1j)}, "must be one number"),
        ({"schedule": dict}, "schedule = <class 'dict'> must be"),
        ({"learning_rate": jnp.ones(2)}, "must be one number"),
        ({"schedule": "fast"}, "schedule = 'fast' must be"),
        ({"schedule": RAMP, "learning_rate": 0.1}, "leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            Celo2(**fields)
