"""The clustered bootstrap: rows drawn together, and widths of intervals."""

import math
import warnings

import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning

from evaluation.diagnosis.bootstrap import cluster_bootstrap

NUM = 2000
TOLERANCE = 4.5 / math.sqrt(2 * NUM)  # of a deviation of so many values


def test_the_unit_is_the_cluster():
    # 40 clusters of 1 to 4 equal rows in random order: a weighted mean of 40 values.
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 5, 40)
    order = rng.permutation(sizes.sum())
    clusters = np.repeat(np.arange(40) * 7 - 50, sizes)[order]
    values = np.repeat(rng.normal(size=40), sizes)[order]

    def mean(rows):
        return float(values[rows].mean())

    result = cluster_bootstrap(mean, clusters, num=NUM)
    assert result.value == values.mean()
    # Linearized: the deviation of the clusters' sums of residuals.
    residuals = np.bincount(clusters + 50, values - values.mean())[::7]
    want = math.sqrt((residuals**2).sum()) / sizes.sum()
    assert result.standard_error == pytest.approx(want, rel=TOLERANCE + 1 / 40)
    naive = cluster_bootstrap(mean, np.arange(len(values)), num=NUM)
    want = values.std() / math.sqrt(len(values))
    assert naive.standard_error == pytest.approx(want, rel=TOLERANCE)
    assert naive.standard_error < 0.8 * result.standard_error
    half = (result.high - result.low) / 2
    assert half == pytest.approx(1.96 * result.standard_error, rel=0.08)
    wider = cluster_bootstrap(mean, clusters, num=NUM, level=0.99)
    assert wider.low < result.low < result.value < result.high < wider.high


def test_strata_keep_their_numbers_and_clusters_their_rows():
    clusters = np.repeat(np.arange(30), 3)
    strata = np.repeat(np.arange(30) % 5 == 0, 3)
    seen = []

    def statistic(rows):
        seen.append(np.bincount(rows, minlength=90).reshape(30, 3))
        return float(strata[rows].mean())

    result = cluster_bootstrap(statistic, clusters, strata, num=50)
    assert result.standard_error < 1e-15 and result.low == result.high == 0.2
    counts = np.stack(seen[1:])
    assert (counts == counts[..., :1]).all()  # all rows of a patient or none
    assert (counts[:, ::5, 0].sum(1) == 6).all()
    assert (counts[:, :, 0].sum(1) == 30).all() and counts.max() > 2
    again = cluster_bootstrap(statistic, clusters, num=50, seed=3)
    other = cluster_bootstrap(statistic, clusters, num=50, seed=4)
    assert again == cluster_bootstrap(statistic, clusters, num=50, seed=3) != other
    assert again.standard_error > 0


def test_resamples_without_a_value_are_nan_with_one_warning():
    def statistic(rows):
        if 0 in rows:
            return 1.0
        warnings.warn("nothing", UndefinedMetricWarning, stacklevel=1)
        return math.nan

    with pytest.warns(UndefinedMetricWarning) as caught:
        result = cluster_bootstrap(statistic, np.arange(4), num=100)
    assert len(caught) == 1 and "of 100 resamples" in str(caught[0].message)
    assert result.value == 1.0 and math.isnan(result.low)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="cluster 1 has rows in several strata"):
        cluster_bootstrap(len, [0, 1, 1], [0, 0, 1])
    with pytest.raises(ValueError, match=r"clusters \(3,\) and strata \(2,\)"):
        cluster_bootstrap(len, [0, 1, 1], [0, 0])
