"""Areas under ROC curves, their intervals, and tests between correlated ones.

The AUC is the probability that a positive scores above a negative, ties counted half:
the Mann-Whitney statistic. DeLong's variance comes from how much each positive and
negative contributes to it (its *placements*), so it holds for any distribution of
scores, and gives the covariances of several scorers of the same cases.

Entries of `labels` must be independent units. Where they are not (several images of a
patient), average the scores of a unit first, or use `evaluation.diagnosis.bootstrap`
with the units as clusters.

With 52 cases, a third of them positive, and a true AUC of 0.8, the plain interval
covers the truth in 92 % of studies instead of 95 %; an interval on the logit of the AUC
does in 95 % (`tests/evaluation/diagnosis/test_auc.py`) and is the default.

References: DeLong et al., Biometrics 1988, doi:10.2307/2531595; Sun and Xu, IEEE Signal
Processing Letters 2014, doi:10.1109/LSP.2014.2337313 (midranks, O(n log n)); the logit
transform: Pepe, The Statistical Evaluation of Medical Tests (2003), chapter 5.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import rankdata
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import roc_auc_score

Method = Literal["logit", "plain"]
Which = int | Sequence[float] | np.ndarray
"""Index of a scorer, or a weight for each with sum 1."""

_ROUNDING = 1e-12
"""Smaller differences of AUCs, and standard errors, are rounding errors."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its uncertainty; NaN where undefined."""

    value: float
    standard_error: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference of two correlated AUCs, and a two-sided test that it is 0."""

    difference: float
    standard_error: float
    low: float
    """Lower end of the plain interval of the difference."""
    high: float
    """Upper end."""
    p_value: float
    """1 if the difference is certainly 0, NaN if nothing is known."""


@dataclasses.dataclass(frozen=True, eq=False)
class AUCs:
    """AUCs of `m` scorers on the same cases, with DeLong's covariance."""

    values: np.ndarray
    """`[m]`."""
    covariance: np.ndarray
    """`[m, m]`; NaN with fewer than two cases of a class."""

    def estimate(
        self,
        which: Which = 0,
        method: Method = "logit",
        level: float = 0.95,
    ) -> Estimate:
        """Returns one scorer's AUC, or a weighted mean of several, with an interval.

        Args:
            which: the scorer or weights.
            method: whether the interval is symmetric in the log-odds (logit) or in the
                AUC itself (plain), where it may leave [0, 1].
            level: coverage.

        Returns:
            NaN ends at an AUC of exactly 0 or 1, where DeLong's variance is 0.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level = {level} must lie in (0, 1)")
        if method not in get_args(Method):
            raise ValueError(f"method = {method!r} must be one of {get_args(Method)}")
        weights = self._weights(which)
        value, error = self._combined(weights)
        if not 0.0 < value < 1.0:
            return Estimate(value, math.nan, math.nan, math.nan)
        half = float(ndtri(0.5 + level / 2)) * error
        if method == "plain":
            return Estimate(value, error, value - half, value + half)
        middle, half = logit(value), half / (value * (1.0 - value))
        return Estimate(
            value, error, float(expit(middle - half)), float(expit(middle + half))
        )

    def compare(self, a: Which, b: Which, level: float = 0.95) -> Comparison:
        """Runs DeLong's paired test of `a` minus `b`."""
        weights = self._weights(a) - self._weights(b)
        # What is left between scorers that agree is rounding, not evidence.
        difference, error = (
            0.0 if abs(x) < _ROUNDING else x for x in self._combined(weights)
        )
        half = float(ndtri(0.5 + level / 2)) * error
        if error > 0.0:
            p_value = float(2.0 * ndtr(-abs(difference) / error))
        else:
            p_value = 1.0 if difference == 0.0 and error == 0.0 else math.nan
        return Comparison(
            difference, error, difference - half, difference + half, p_value
        )

    def _combined(self, weights: np.ndarray) -> tuple[float, float]:
        """A weighted sum of AUCs and its standard error."""
        variance = float(weights @ self.covariance @ weights)
        return float(weights @ self.values), math.sqrt(max(variance, 0.0))

    def _weights(self, which: Which) -> np.ndarray:
        if isinstance(which, int):
            return np.eye(len(self.values))[which]
        weights = np.asarray(which, np.float64)
        # False for NaN, too.
        sums_to_one = abs(weights.sum() - 1.0) <= 1e-9
        if weights.shape != self.values.shape or not sums_to_one:
            raise ValueError(
                f"weights {which} must be {len(self.values)} numbers with sum 1"
            )
        return weights


def auc(labels: Any, scores: Any) -> float:
    """Returns the AUC; NaN, with one warning, if all cases are of one class.

    Args:
        labels: `[n]` bool.
        scores: `[n]`, larger for positives.
    """
    labels, scores = _checked(labels, scores)
    if labels.all() or not labels.any():
        _warn("all cases are of one class: the AUC is not defined")
        return math.nan
    return float(roc_auc_score(labels, scores))


def placements(
    positives: np.ndarray, negatives: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each case's contribution to the AUC, which is the mean of either.

    Args:
        positives: scores of positives `[..., n1]`.
        negatives: scores of negatives `[..., n0]`.

    Returns:
        For each positive the share of negatives below it `[..., n1]`, and for each
        negative the share of positives above it `[..., n0]`; ties count half.
    """
    n1, n0 = positives.shape[-1], negatives.shape[-1]
    both = rankdata(np.concatenate([positives, negatives], -1), axis=-1)
    below = (both[..., :n1] - rankdata(positives, axis=-1)) / n0
    above = 1.0 - (both[..., n1:] - rankdata(negatives, axis=-1)) / n1
    return below, above


def delong(labels: Any, scores: Any) -> AUCs:
    """Computes AUCs of scorers of the same cases, and their covariance.

    Args:
        labels: `[n]` bool.
        scores: `[m, n]`, or `[n]` for one scorer.

    Returns:
        NaN everywhere, with one warning, if all cases are of one class; a covariance of
        NaN, with one warning, if a class has a single case.
    """
    labels, scores = _checked(labels, scores)
    scores = np.atleast_2d(scores)
    n1 = int(labels.sum())
    n0, m = len(labels) - n1, len(scores)
    if min(n1, n0) == 0:
        _warn("all cases are of one class: the AUC is not defined")
        return AUCs(np.full(m, math.nan), np.full((m, m), math.nan))
    below, above = placements(scores[:, labels], scores[:, ~labels])
    values = below.mean(1)
    if min(n1, n0) == 1:
        _warn("a class has one case only: the variance of the AUC is not defined")
        return AUCs(values, np.full((m, m), math.nan))
    covariance = np.cov(below).reshape(m, m) / n1 + np.cov(above).reshape(m, m) / n0
    return AUCs(values, covariance)


def _checked(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.dtype != bool or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels of shape {labels.shape} and type {labels.dtype} must be [n] bool"
        )
    if scores.ndim not in (1, 2) or scores.shape[-1:] != labels.shape:
        raise ValueError(
            f"scores of shape {scores.shape} must be [n] or [m, n], n = {len(labels)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: replace NaN by what it should rank as")
    return labels, scores


def _warn(message: str) -> None:
    warnings.warn(message, UndefinedMetricWarning, stacklevel=3)
