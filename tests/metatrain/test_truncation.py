"""Episode lengths: their distributions, whole windows, growth, staggered starts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metatrain.truncation import EpisodeLengths

SMALLEST_P = 1e-3
"""A correct sampler fails with this probability; the keys are fixed."""


@functools.partial(jax.jit, static_argnums=0)
def sampled(lengths, window, outer_step):
    keys = jax.random.split(jax.random.key(0), 8000)
    return jax.vmap(lambda k: lengths.sample(k, window, outer_step))(keys)


def draw(lengths, window, outer_step=0):
    return np.asarray(sampled(lengths, window, outer_step))


def chi_square(sample, probabilities):
    """p of counts of a sample, given the probability of each value."""
    values = sorted(probabilities)
    counts = [np.sum(sample == value) for value in values]
    assert sum(counts) == len(sample), "values that must not occur"
    expected = len(sample) * np.array([probabilities[value] for value in values])
    assert expected.min() > 5
    return stats.chisquare(counts, expected).pvalue


def in_windows(minimum, maximum, window, cumulative):
    """Probability of each multiple of the window, given P(length <= x)."""
    ends = window * np.arange(minimum // window, -(-maximum // window) + 1)
    below = np.clip([cumulative(end) for end in ends], 0.0, 1.0)
    mass = dict(zip(ends[1:].tolist(), np.diff(below), strict=True))
    return {length: p for length, p in mass.items() if p > 0}


def test_log_uniform_lengths_follow_their_distribution():
    sample = draw(EpisodeLengths(100, 1000), 1)
    # Rounded up to whole steps: x − ½ has the distribution, within .5 %.
    distribution = stats.loguniform(100, 1000)
    assert stats.kstest(sample - 0.5, distribution.cdf).pvalue > SMALLEST_P
    assert stats.kstest(sample - 0.5, stats.uniform(100, 900).cdf).pvalue < 1e-9
    probabilities = in_windows(100, 1000, 70, distribution.cdf)
    windowed = draw(EpisodeLengths(100, 1000), 70)
    assert chi_square(windowed, probabilities) > SMALLEST_P


def test_uniform_lengths_follow_their_distribution():
    lengths = EpisodeLengths(21, 60, distribution="uniform")
    every = dict.fromkeys(range(21, 61), 1 / 40)
    assert chi_square(draw(lengths, 1), every) > SMALLEST_P
    # In windows of 7: 21 alone, then seven each, then 57 … 60.
    windows = {21: 1 / 40, 63: 4 / 40} | dict.fromkeys((28, 35, 42, 49, 56), 7 / 40)
    assert chi_square(draw(lengths, 7), windows) > SMALLEST_P


@pytest.mark.parametrize("window", [7, 50, 64])
def test_lengths_are_rounded_up_to_whole_windows(window):
    sample = draw(EpisodeLengths(100, 1000), window)
    assert np.all(sample % window == 0)
    # 100 itself has probability zero, so 100 // window windows are too few.
    assert sample.min() == window * (100 // window + 1)
    assert sample.max() == window * -(-1000 // window)


@pytest.mark.parametrize(("length", "window"), [(1000, 50), (400, 50), (1000, 1)])
@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
def test_a_constant_length_that_fits_is_kept(length, window, distribution):
    lengths = EpisodeLengths(length, length, distribution=distribution)
    assert set(draw(lengths, window)) == {length}


def test_a_curriculum_jumps_from_stage_to_stage():
    lengths = EpisodeLengths(40, 80, stages=((10, 5, 9), (25, 20, 20)))
    found = {step: tuple(map(float, lengths.bounds(step))) for step in range(40)}
    assert {found[step] for step in range(10)} == {(5, 9)}
    assert {found[step] for step in range(10, 25)} == {(20, 20)}
    assert {found[step] for step in range(25, 40)} == {(40, 80)}
    assert set(draw(lengths, 1, outer_step=9)) <= {5, 6, 7, 8, 9, 10}
    assert set(draw(lengths, 1, outer_step=24)) == {20}
    assert draw(lengths, 1, outer_step=25).min() > 39


@pytest.mark.parametrize("growth", ["linear", "log_linear"])
def test_a_ramp_grows_from_the_first_bounds_to_the_last(growth):
    lengths = EpisodeLengths(
        160, 1000, stages=((100, 10, 50), (200, 20, 100)), growth=growth
    )
    scale = np.log if growth == "log_linear" else np.asarray
    unscale = np.exp if growth == "log_linear" else np.asarray
    for step in (0, 1, 37, 99, 100, 150, 199, 200, 201, 10**6):
        expected = [
            unscale(np.interp(step, [0, 100, 200], scale(values)))
            for values in ([10, 20, 160], [50, 100, 1000])
        ]
        np.testing.assert_allclose(lengths.bounds(step), expected, rtol=1e-5)


def test_lengths_at_a_step_of_a_ramp_follow_the_bounds_of_that_step():
    ramp = EpisodeLengths(
        100, 1000, stages=((80, 20, 40),), growth="linear", distribution="uniform"
    )
    # A quarter of the way: 40 … 280.
    probabilities = in_windows(40, 280, 20, lambda x: (x - 39) / 241)
    probabilities = {40: 1 / 241} | probabilities
    sample = draw(ramp, 20, outer_step=20)
    assert chi_square(sample, probabilities) > SMALLEST_P
    same = EpisodeLengths(30, 90, stages=((10, 30, 90),), growth="log_linear")
    plain = EpisodeLengths(30, 90)
    np.testing.assert_array_equal(draw(same, 1, 5), draw(plain, 1))


def test_a_constant_length_may_grow():
    ramp = EpisodeLengths(1000, 1000, stages=((90, 100, 100),), growth="linear")
    assert set(draw(ramp, 50, outer_step=40)) == {500}
    assert set(draw(ramp, 30, outer_step=40)) == {510}
    assert set(draw(ramp, 50, outer_step=90)) == {1000}


def test_growth_compiles_nothing_anew():
    lengths = EpisodeLengths(50, 90, stages=((10, 5, 9),), growth="log_linear")
    sample = jax.jit(lambda key, step: lengths.sample(key, 5, step))
    found = {int(sample(jax.random.key(1), jnp.int32(step))) for step in range(0, 30)}
    assert len(found) > 3
    assert sample._cache_size() == 1


def test_first_episodes_are_staggered_over_all_windows():
    lengths = EpisodeLengths(200, 200)
    keys = jax.random.split(jax.random.key(1), 1000)
    first = np.asarray(jax.vmap(lambda k: lengths.stagger(k, np.int32(200), 50))(keys))
    quarters = dict.fromkeys((50, 100, 150, 200), 1 / 4)
    assert chi_square(first, quarters) > SMALLEST_P


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"minimum": 0, "maximum": 10}, r"lengths.minimum = 0"),
        ({"minimum": 10, "maximum": 5}, r"lengths.maximum = 5 must be at least"),
        (
            {"distribution": "normal"},
            r"distribution = 'normal' must be one of",
        ),
        (
            {"growth": "cubic"},
            r"growth = 'cubic' must be one of constant, lin",
        ),
        ({"growth": "linear"}, r"lengths.growth = 'linear' needs a stage"),
        ({"stages": ((5, 1),)}, r"stages\[0\] = \(5, 1\) must be a tuple of 3"),
        ({"stages": ((0, 1, 2),)}, r"lengths.stages\[0\] until = 0 must be"),
        ({"stages": ((5, 3, 2),)}, r"lengths.stages\[0\] maximum = 2 must be at least"),
        (
            {"stages": ((5, 1, 2), (5, 1, 2))},
            r"lengths.stages: until = 5 must be greater than the 5",
        ),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        EpisodeLengths(**fields)
