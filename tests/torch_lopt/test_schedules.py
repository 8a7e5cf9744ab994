"""Every schedule has the level that it has in the JAX library, at every step."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

import lopt.schedules as theirs
from torch_lopt import schedules
from torch_lopt.schedules import (
    Constant,
    InfiniteSchedule,
    WarmupCosine,
    WarmupStableDecay,
)

LENGTHS = (1, 2, 7, 50, 63, 250, 1001)

CASES = [
    "constant",
    "cosine",
    Constant(),
    Constant(warmup=0.3, initial=0.25),
    Constant(warmup=13, unit="steps"),
    WarmupCosine(),
    WarmupCosine(warmup=0.0, final=0.1),
    WarmupCosine(warmup=0.37, initial=1.0, final=1.0),
    WarmupCosine(warmup=60, initial=0.5, final=0.2, unit="steps"),
    # 0.01 of 50 steps is half a step, rounded to even.
    *(
        WarmupStableDecay(warmup, decay, initial=0.1, final=0.03, shape=shape)
        for shape in WarmupStableDecay.shapes
        for warmup, decay in ((0.01, 0.2), (0.7, 0.3), (0.0, 1.0), (1.0, 0.0))
    ),
    *(
        WarmupStableDecay(20, decay, final=0.5, shape=shape, unit="steps")
        for shape in WarmupStableDecay.shapes
        for decay in (0, 30, 900)
    ),
    *(
        InfiniteSchedule(shape=shape, final=final)
        for shape in InfiniteSchedule.shapes
        for final in (0.1, 0.55, 1e-9)
    ),
    *(
        InfiniteSchedule(5, 30, 17, annealing, 0.4, 0.2, shape=shape, unit="steps")
        for shape in InfiniteSchedule.shapes
        for annealing in (0, 25)
    ),
    InfiniteSchedule(annealing=0.0, initial=0.9),
    InfiniteSchedule(warmup=0.1, cooldown=0.0, constant=0.0, annealing=0.9),
]


def in_jax(schedule):
    """The same schedule of the JAX library."""
    if isinstance(schedule, str):
        return schedule
    kind = getattr(theirs, type(schedule).__name__)
    return kind(**dataclasses.asdict(schedule))


def assert_agree(schedule, runs):
    """Compares the levels of runs, each a length and as many steps as the others."""

    def level(num_steps, steps):
        rate = theirs.learning_rate_schedule(1.0, in_jax(schedule), num_steps)
        return jnp.broadcast_to(rate(steps), steps.shape)

    lengths, steps = map(jnp.asarray, zip(*runs, strict=True))
    want = jax.jit(jax.vmap(level))(lengths, steps)
    for (num_steps, at), row in zip(runs, np.asarray(want), strict=True):
        ours = [schedules.level(schedule, step, num_steps) for step in at]
        np.testing.assert_allclose(ours, row, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", CASES, ids=str)
def test_levels_are_those_of_jax(schedule):
    steps = list(range(max(LENGTHS) + 5))
    assert_agree(schedule, [(num_steps, steps) for num_steps in LENGTHS])


def test_phases_of_long_runs_begin_where_they_do_in_jax():
    """Boundaries are rounded in float32: n·0.8 is another step in float64."""
    schedule = WarmupStableDecay(warmup=0.1, decay=0.2, final=0.5)
    runs = []
    for num_steps in (10**6 + 3, 12_345_677, 2**24 - 1, 2**25 + 2):
        ends = [round(num_steps * x) for x in (0.1, 0.8, 1.0)]
        runs.append((num_steps, [end + i for end in ends for i in range(-3, 4)]))
    assert_agree(schedule, runs)


@pytest.mark.parametrize("kind", schedules.SCHEDULES, ids=lambda kind: kind.__name__)
def test_fields_and_defaults_are_those_of_jax(kind):
    theirs_too = getattr(theirs, kind.__name__)
    assert dataclasses.asdict(kind()) == dataclasses.asdict(theirs_too())


def test_a_schedule_says_whether_it_needs_the_length_of_the_run():
    """It does exactly where the levels of two lengths differ."""
    for schedule in CASES:
        paths = [
            [schedules.level(schedule, step, n) for step in range(300)]
            for n in (97, 211)
        ]
        flat = isinstance(schedule, WarmupCosine) and schedule.final == 1.0
        differ = paths[0] != paths[1]
        assert schedules.needs_num_steps(schedule) == (differ or flat), schedule


BAD = [
    {"warmup": -0.1},
    {"warmup": 1.1},
    {"warmup": float("nan")},
    {"warmup": float("inf"), "unit": "steps"},
    {"warmup": 1.5, "unit": "steps"},
    {"warmup": 0.9, "decay": 0.2},
    {"initial": 1.5},
    {"final": -0.5},
    {"shape": "exponential"},
    {"unit": "epochs"},
]


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_both_libraries_refuse_the_same_fields(fields):
    for kind in (WarmupStableDecay, theirs.WarmupStableDecay):
        with pytest.raises(ValueError, match=next(iter(fields))) as info:
            kind(**fields)
        assert "\n" not in str(info.value)


@pytest.mark.parametrize("final", [0.0, 0.6])
def test_annealing_needs_a_level_to_fall_to(final):
    for kind in (InfiniteSchedule, theirs.InfiniteSchedule):
        with pytest.raises(ValueError, match=r"final .* 0\.55"):
            kind(final=final)


@pytest.mark.parametrize("schedule", ["linear", None, 1.0, ("constant",)], ids=repr)
def test_what_is_no_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match="schedule must be one of"):
        schedules.check_schedule(schedule)


def test_the_level_is_exact_at_the_ends_of_phases():
    for schedule, num_steps in itertools.product(CASES, (50, 250)):
        if isinstance(schedule, (WarmupCosine, WarmupStableDecay)):
            assert schedule.level(num_steps + 70, num_steps) in (schedule.final, 1.0)
    assert schedules.level("cosine", 10, 10) == 0.0
    assert Constant(warmup=4, unit="steps").level(4, 1) == 1.0
