"""Percentile bootstrap over clusters: patients, tasks, seeds.

Whole clusters are drawn with replacement, each with all its rows, so rows of a cluster
may depend on one another. With strata, each resample has as many clusters of every
stratum as the sample, so it has both classes in the same proportions.

Reference: Davison and Hinkley, Bootstrap Methods and their Application (1997), sections
3.2 (strata), 3.8 (clusters) and 5.3.1.
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
    """Estimates a statistic of rows, its standard error and percentile interval.

    Args:
        statistic: function of the indices of rows `[k]`, which may repeat.
        clusters: cluster of each row, `[n]`.
        strata: stratum of each row, `[n]`, the same within a cluster.
        num: number of resamples.
        seed: seed of the resampling.
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
    rows, groups = _groups(clusters, strata)
    value = float(statistic(np.arange(len(clusters))))
    rng = np.random.RandomState(seed)

    def resample() -> float:
        drawn = (c for g in groups for c in g[rng.randint(len(g), size=len(g))])
        return statistic(np.concatenate([rows[c] for c in drawn]))

    # One warning about all resamples follows.
    with warnings.catch_warnings():
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
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The rows of every cluster, and the clusters of every stratum."""
    _, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(cluster, kind="stable"), np.cumsum(sizes)[:-1])
    of_cluster = strata[[chosen[0] for chosen in rows]]
    strange = np.flatnonzero(of_cluster[cluster] != strata)
    if len(strange):
        raise ValueError(
            f"cluster {clusters[strange[0]]} has rows in several strata: a cluster is "
            "drawn as a whole"
        )
    return rows, [np.flatnonzero(of_cluster == s) for s in np.unique(of_cluster)]
