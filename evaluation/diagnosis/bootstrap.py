"""The percentile bootstrap whose unit is a cluster: a patient, a task, a seed.

Whole clusters are drawn with replacement, and all rows of a drawn cluster come along,
so rows of one cluster may depend on one another as they like. With strata, as many
clusters are drawn of each stratum as there are, so a resample has both classes in the
proportions of the sample.

Reference: Davison and Hinkley, Bootstrap Methods and their Application (1997), sections
3.2 (strata), 3.8 (clusters: whole ones are drawn, rows within them are not) and 5.3.1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning

from evaluation.diagnosis.auc import Estimate


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float],
    clusters: Any,
    strata: Any = None,
    num: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """A statistic of rows, its standard error and percentile interval.

    Args:
        statistic: of the indices of rows `[k]`, which may repeat.
        clusters: which cluster each row belongs to, `[n]`.
        strata: which stratum, `[n]`, the same for all rows of a cluster.
        num: resamples.
        seed: of the resampling.
        level: coverage.

    Returns:
        NaN for error and ends, with one warning, if a resample's statistic is NaN.

    Raises:
        ValueError: if a cluster lies in two strata or shapes differ.
    """
    clusters = np.asarray(clusters)
    strata = np.zeros(len(clusters), int) if strata is None else np.asarray(strata)
    if clusters.ndim != 1 or clusters.shape != strata.shape or not len(clusters):
        raise ValueError(
            f"clusters {clusters.shape} and strata {strata.shape} must both be [n]"
        )
    order, starts, sizes, groups = _groups(clusters, strata)
    value = float(statistic(np.arange(len(clusters))))
    rng = np.random.RandomState(seed)

    def resample() -> float:
        drawn = [g[rng.randint(len(g), size=len(g))] for g in groups]
        return statistic(order[_runs(starts, sizes, np.concatenate(drawn))])

    with warnings.catch_warnings():  # one word about all resamples, below
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        values = np.array([resample() for _ in range(num)])
    if np.isnan(values).any():
        warnings.warn(
            f"{np.isnan(values).sum()} of {num} resamples have no value: there is no "
            "interval; use strata, or more clusters",
            UndefinedMetricWarning,
            stacklevel=2,
        )
        return Estimate(value, math.nan, math.nan, math.nan)
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(values.std(ddof=1)), float(low), float(high))


def _groups(
    clusters: np.ndarray, strata: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Rows sorted by cluster, where each begins, its size; clusters by stratum."""
    _, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.argsort(cluster, kind="stable")
    starts = np.cumsum(sizes) - sizes
    of_cluster = strata[order[starts]]
    strange = np.flatnonzero(of_cluster[cluster] != strata)
    if len(strange):
        raise ValueError(
            f"cluster {clusters[strange[0]]} has rows in several strata: a cluster is "
            "drawn as a whole"
        )
    indices = np.arange(len(sizes))
    groups = [indices[of_cluster == stratum] for stratum in np.unique(of_cluster)]
    return order, starts, sizes, groups


def _runs(starts: np.ndarray, sizes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The places `starts[c] … starts[c] + sizes[c] - 1` of all chosen clusters."""
    lengths = sizes[chosen]
    ends = np.cumsum(lengths)
    return np.repeat(starts[chosen] - ends + lengths, lengths) + np.arange(ends[-1])
