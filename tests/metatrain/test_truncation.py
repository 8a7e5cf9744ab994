"""Episode lengths: log-uniform, whole windows, staggered at the start."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from metatrain.truncation import EpisodeLengths


def draw(lengths, window, num=4000):
    keys = jax.random.split(jax.random.key(0), num)
    return np.asarray(jax.vmap(lambda k: lengths.sample(k, window))(keys))


def test_lengths_are_log_uniform_multiples_of_the_window():
    sample = draw(EpisodeLengths(100, 1000), 1)
    assert sample.min() >= 100 and sample.max() <= 1001
    # The median of a log-uniform variable is the geometric mean of its bounds.
    assert abs(np.median(sample) / np.sqrt(100 * 1000) - 1) < 0.08
    quarter = np.mean(sample < 100 * 10**0.25)
    assert abs(quarter - 0.25) < 0.03


@pytest.mark.parametrize("window", [7, 50, 64])
def test_lengths_are_rounded_up_to_whole_windows(window):
    sample = draw(EpisodeLengths(100, 1000), window)
    assert np.all(sample % window == 0)
    # 100 itself has probability zero, so 100 // window windows are too few.
    assert sample.min() == window * (100 // window + 1)
    assert sample.max() == window * -(-1000 // window)


@pytest.mark.parametrize(("length", "window"), [(1000, 50), (400, 50), (1000, 1)])
def test_a_constant_length_that_fits_is_kept(length, window):
    assert set(draw(EpisodeLengths(length, length), window, 10)) == {length}


def test_first_episodes_are_staggered_over_all_windows():
    lengths = EpisodeLengths(200, 200)
    keys = jax.random.split(jax.random.key(1), 1000)
    first = np.asarray(jax.vmap(lambda k: lengths.stagger(k, np.int32(200), 50))(keys))
    assert set(first) == {50, 100, 150, 200}
    counts = [np.mean(first == n) for n in (50, 100, 150, 200)]
    assert max(counts) - min(counts) < 0.08


def test_bad_bounds_are_named():
    with pytest.raises(ValueError, match=r"lengths.minimum = 0"):
        EpisodeLengths(0, 10)
    with pytest.raises(ValueError, match=r"lengths.maximum = 5 must be at least"):
        EpisodeLengths(10, 5)
