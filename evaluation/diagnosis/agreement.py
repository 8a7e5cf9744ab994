"""Agreement of raters: Cohen's and Fleiss' kappa, intraclass correlation.

Kappa is agreement beyond what raters with the same habits would reach by chance: 1 is
perfect, 0 chance. Weights let near misses of an ordinal grade count in part. Grades are
integers 0 … K − 1. K is always given, as weights depend on distances between grades and
must not depend on which grades occur.

References: Cohen (1960, 1968); Fleiss, Psychological Bulletin 1971,
doi:10.1037/h0031619; Fleiss and Cohen 1973, doi:10.1177/001316447303300309 (the
quadratic weighted kappa is an intraclass correlation, up to terms in 1/n); Shrout and
Fleiss 1979, doi:10.1037/0033-2909.86.2.420.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any, Literal

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import cohen_kappa_score

Weights = Literal["none", "linear", "quadratic"]


def cohen_kappa(a: Any, b: Any, num_grades: int, weights: Weights = "none") -> float:
    """Returns Cohen's kappa of two raters of the same cases.

    Args:
        a: grades `[n]`.
        b: grades `[n]`.
        num_grades: number of grades (K).
        weights: cost of a disagreement: 1 (none), the distance of the grades (linear)
            or its square (quadratic).

    Returns:
        NaN, with one warning, if both give every case the same grade.
    """
    ratings = _checked([a, b], num_grades)
    value = _cohen(ratings[0], ratings[1], num_grades, weights)
    if math.isnan(value):
        _warn("both raters give every case the same grade")
    return value


def mean_pairwise_kappa(
    ratings: Any, num_grades: int, weights: Weights = "none"
) -> float:
    """Returns the mean of Cohen's kappa over all pairs of raters `[raters, n]`.

    NaN, with one warning, if it is undefined for a pair.
    """
    ratings = _checked(ratings, num_grades)
    values = [
        _cohen(a, b, num_grades, weights) for a, b in itertools.combinations(ratings, 2)
    ]
    if any(map(math.isnan, values)):
        _warn("two raters give every case the same grade")
    return float(np.mean(values))


def fleiss_kappa(ratings: Any, num_grades: int) -> float:
    """Returns Fleiss' kappa of grades `[raters, n]`; raters may differ between cases.

    NaN, with one warning, if all ratings are the same grade.
    """
    ratings = _checked(ratings, num_grades)
    raters, n = ratings.shape
    cells = ratings + num_grades * np.arange(n)[None]
    counts = np.bincount(cells.ravel(), minlength=n * num_grades)
    counts = counts.reshape(n, num_grades).astype(np.float64)
    shares = counts.sum(0) / (n * raters)
    chance = float((shares**2).sum())
    if (counts.sum(0) > 0).sum() == 1:
        _warn("all ratings are the same grade")
        return math.nan
    agreement = ((counts**2).sum(1) - raters) / (raters * (raters - 1))
    return float((agreement.mean() - chance) / (1.0 - chance))


def icc(ratings: Any) -> float:
    """Returns ICC(2,1): two-way random effects, absolute agreement of single ratings.

    Args:
        ratings: numbers `[raters, n]`, at least two of each.

    Returns:
        NaN, with one warning, if all ratings are equal or the variances cancel.
    """
    ratings = np.asarray(ratings, np.float64)
    if ratings.ndim != 2 or min(ratings.shape) < 2:
        raise ValueError(f"ratings of shape {ratings.shape} must be [raters, n], ≥ 2")
    if not np.isfinite(ratings).all():
        raise ValueError("ratings must be finite")
    raters, n = ratings.shape
    mean = ratings.mean()
    of_raters, of_cases = ratings.mean(1, keepdims=True), ratings.mean(0, keepdims=True)
    rest = ratings - of_raters - of_cases + mean
    between_cases = raters * ((of_cases - mean) ** 2).sum() / (n - 1)
    between_raters = n * ((of_raters - mean) ** 2).sum() / (raters - 1)
    error = (rest**2).sum() / ((n - 1) * (raters - 1))
    total = between_cases + (raters - 1) * error + raters * (between_raters - error) / n
    if (ratings == ratings[0, 0]).all():
        _warn("all ratings are the same number")
        return math.nan
    if total == 0.0:
        _warn("the variances between cases, raters and the rest cancel")
        return math.nan
    return float((between_cases - error) / total)


def _cohen(a: np.ndarray, b: np.ndarray, num_grades: int, weights: Weights) -> float:
    if (a == a[0]).all() and (b == a[0]).all():
        return math.nan
    scheme = None if weights == "none" else weights
    return float(cohen_kappa_score(a, b, labels=np.arange(num_grades), weights=scheme))


def _checked(ratings: Any, num_grades: int) -> np.ndarray:
    ratings = np.asarray(ratings)
    if ratings.ndim != 2 or len(ratings) < 2 or not ratings.shape[1]:
        raise ValueError(
            f"ratings of shape {ratings.shape} must be [raters, n], at least 2 raters"
        )
    whole = np.issubdtype(ratings.dtype, np.integer) or ratings.dtype == bool
    if not whole or ratings.min() < 0 or ratings.max() >= num_grades:
        raise ValueError(
            f"ratings in [{ratings.min()}, {ratings.max()}] must be integers from 0 to "
            f"{num_grades - 1}"
        )
    return ratings.astype(np.int64)


def _warn(reason: str) -> None:
    warnings.warn(
        f"{reason}: agreement beyond chance is not defined",
        UndefinedMetricWarning,
        stacklevel=3,
    )
