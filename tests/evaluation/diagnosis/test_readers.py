"""Simulated readers against closed forms, and the panel against the study."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from evaluation.diagnosis.agreement import (
    cohen_kappa,
    fleiss_kappa,
    mean_pairwise_kappa,
)
from evaluation.diagnosis.auc import auc
from evaluation.diagnosis.readers import PANEL, Reader, read_panel
from tasks.data.speckle import Speckle

# Radiology 2023, 10.1148/radiol.230659, by dichotomy: the 95 % interval of the kappa
# between readers, and the range of the readers' AUCs.
KAPPAS = ((0.31, 0.37), (0.27, 0.33), (0.33, 0.40))
AUCS = ((0.49, 0.84), (0.57, 0.76), (0.52, 0.81))


@pytest.fixture(scope="module")
def patients():
    return Speckle(num_test=20_000).patients("test")


@pytest.fixture(scope="module")
def readings(patients):
    return read_panel(PANEL, patients.appearance, seed=1)


@pytest.mark.parametrize("k", range(3))
def test_the_panel_agrees_and_errs_like_the_study_s(patients, readings, k):
    assert readings.shape == (2, 6, 20_000) and set(np.unique(readings)) == {0, 1, 2, 3}
    above = patients.grade > k
    low, high = KAPPAS[k]
    for session in readings > k:
        assert low < mean_pairwise_kappa(session, 2) < high
        assert low < fleiss_kappa(session, 2) < high
    low, high = AUCS[k]
    # Of the four grades, ties counted half, and of what is called above k alone.
    values = [auc(above, reading) for reading in readings[0]]
    assert low < min(values) < 0.6 and 0.7 < max(values) < high
    called = [auc(above, reading > k) for reading in readings[0]]
    assert AUCS[k][0] < min(called) < max(called) < high
    # Nobody sees more than there is to be seen.
    assert max(values) < auc(above, patients.appearance)


def test_readers_agree_with_themselves_more_than_with_others(readings):
    first, second = readings
    within = [
        cohen_kappa(a, b, 4, "quadratic") for a, b in zip(first, second, strict=True)
    ]
    between = mean_pairwise_kappa(first, 4, "quadratic")
    assert min(within) > 0.7 > between + 0.15 and max(within) < 0.95


def test_a_reader_is_two_normal_noises_and_thresholds():
    n = 40_000
    reader = Reader(0.5, 0.6, 0.8, (-0.2, 0.7, 1.5))
    reads = [reader.read(np.full(n, 0.4), s, (7,)) for s in (0, 1)]
    # Both noises add up to deviation 1; the lasting one is .36 of the variance.
    for k, threshold in enumerate(reader.thresholds):
        single = norm.sf(threshold - 0.2)
        error = math.sqrt(single * (1 - single) / n)
        assert np.mean(reads[0] > k) == pytest.approx(single, abs=4.5 * error)
        joint = multivariate_normal(cov=[[1, 0.36], [0.36, 1]]).cdf(
            [0.2 - threshold] * 2
        )
        both = np.mean((reads[0] > k) & (reads[1] > k))
        assert both == pytest.approx(joint, abs=4.5 * math.sqrt(joint / n))
    # Without noise the grade is the number of thresholds below.
    exact = Reader(2.0, 0.0, 0.0, (0.0, 1.0))
    assert exact.read([-0.1, 0.2, 0.6], 0, (0,)).tolist() == [0, 1, 2]
    blind = Reader(0.0).read(np.arange(n) / n, 0, (0,))
    error = math.sqrt(1 / (3 * n))
    assert auc(np.arange(n) >= n // 2, blind) == pytest.approx(0.5, abs=4.5 * error)


def test_a_seed_is_a_panel():
    looks = np.linspace(-0.5, 1.5, 200)
    one, same, other = (read_panel(PANEL, looks, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.1
    # A third session changes nothing of the first two, nor a reader of the others.
    more = read_panel(PANEL[:2], looks, num_sessions=3, seed=3)
    np.testing.assert_array_equal(more[:2], one[:, :2])
    twins = read_panel(PANEL[:1] * 2, looks, seed=3)
    assert (twins[:, 0] != twins[:, 1]).any()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sensitivity", math.nan, "sensitivity = nan must be a number"),
        ("noise", -1.0, "noise = -1.0 must not be negative"),
        ("session_noise", math.inf, "session_noise = inf must not be negative"),
        ("thresholds", (0.2, 0.2), "thresholds = (0.2, 0.2) must ascend"),
        ("thresholds", (), "thresholds = () must ascend"),
    ],
)
def test_bad_fields_are_refused(field, value, message):
    with pytest.raises(ValueError) as info:
        Reader(**{field: value})
    assert message == str(info.value)
