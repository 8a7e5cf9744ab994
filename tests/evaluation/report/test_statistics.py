"""Paired statistics against closed forms and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.report.statistics import mean_and_error, paired


def test_paired_interval_is_that_of_the_t_test():
    rng = np.random.RandomState(0)
    a, b = rng.rand(5), rng.rand(5) + 0.1
    result = paired(a.tolist(), b.tolist())
    test = stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    assert result.low == pytest.approx(interval.low)
    assert result.high == pytest.approx(interval.high)
    assert result.mean / result.standard_error == pytest.approx(test.statistic)
    assert result.ratio == pytest.approx(a.mean() / b.mean())


def test_closed_form_wins_ties_and_verdicts():
    result = paired([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    assert result.differences == (-1.0, 0.0, -2.0)
    assert (result.mean, result.wins, result.ties, result.num) == (-1.0, 2, 1, 3)
    assert result.standard_error == pytest.approx(1 / math.sqrt(3))
    assert result.verdict == "tie"
    assert paired([1.0, 1.1, 1.0], [2.0, 2.0, 2.0]).verdict == "lower"
    assert paired([3.0, 3.1, 3.0], [2.0, 2.0, 2.0]).verdict == "higher"


def test_one_seed_has_no_interval_and_no_winner():
    result = paired([1.0], [2.0])
    assert math.isnan(result.low)
    assert result.verdict == "tie"
    assert math.isnan(mean_and_error([1.0])[1])
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)


def test_unpaired_figures_are_refused():
    with pytest.raises(ValueError, match="cannot pair 2 with 1"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="cannot pair 0"):
        paired([], [])
