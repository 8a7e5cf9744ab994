"""Statistics of runs that are paired by seed, and of many cells together.

Two optimizers that share a seed share initial parameters and batches, so much of the
variation between seeds cancels in the difference. Intervals are Student's: five seeds
have four degrees of freedom, and a factor of 2.78, not 1.96.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit
from scipy.stats import bootstrap, trim_mean


@dataclasses.dataclass(frozen=True)
class Paired:
    """Differences a − b of one figure by seed; negative where a is lower."""

    differences: tuple[float, ...]
    mean: float
    standard_error: float
    """NaN with fewer than two seeds."""
    low: float
    """Lower end of the 95 % t-interval of the mean."""
    high: float
    """Upper end."""
    wins: int
    """Seeds on which a is lower."""
    ties: int
    ratio: float
    """Ratio of the means, a over b."""

    @property
    def num(self) -> int:
        """Number of seeds."""
        return len(self.differences)

    @property
    def verdict(self) -> str:
        """Whether a is lower or higher; a tie if the interval holds 0 or is NaN."""
        if self.high < 0:
            return "lower"
        return "higher" if self.low > 0 else "tie"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error, NaN with fewer than two values.

    A value that is not finite is not left out: neither is the mean then.
    """
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return float(array.mean()) if len(array) else math.nan, math.nan
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        error = float(array.std(ddof=1) / math.sqrt(len(array)))
        return float(array.mean()), error


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Paired:
    """Compares the figures of two optimizers, paired by seed.

    Args:
        a: figures of one optimizer, by seed.
        b: figures of the other, of the same seeds.
        level: coverage of the interval.

    Raises:
        ValueError: if the lengths differ, or there is nothing to compare.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"cannot pair {len(a)} with {len(b)} figures")
    of_a, of_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        differences = of_a - of_b
    mean, error = mean_and_error(differences.tolist())
    half = math.nan
    if len(differences) > 1:
        half = float(stdtrit(len(differences) - 1, 0.5 + level / 2)) * error
    denominator = float(of_b.mean())
    return Paired(
        differences=tuple(differences.tolist()),
        mean=mean,
        standard_error=error,
        low=mean - half,
        high=mean + half,
        wins=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        ratio=float(of_a.mean()) / denominator if denominator else math.nan,
    )


@dataclasses.dataclass(frozen=True)
class InterquartileMean:
    """The mean of the middle half of all figures, with an interval."""

    mean: float
    low: float
    """Lower end of the 95 % bootstrap interval over cells; NaN with fewer than two."""
    high: float
    """Upper end."""
    num_cells: int
    num_figures: int


def interquartile_mean(
    figures: Sequence[Sequence[float]], level: float = 0.95
) -> InterquartileMean:
    """Computes the interquartile mean over cells and seeds, and its interval.

    The lowest and highest quarter of all figures are left out. Seeds of a cell are not
    independent evidence about other cells, so the bootstrap (percentiles of 2,000
    resamples, always the same) draws whole cells. Agarwal et al., arXiv:2108.13264.

    Args:
        figures: figures of each cell by seed, as many in each.
        level: coverage of the interval.

    Raises:
        ValueError: if there is no cell, or cells have different numbers of figures,
            none, or NaN.
    """
    lengths = {len(cell) for cell in figures}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"an interquartile mean needs cells with as many figures each, not "
            f"{[len(cell) for cell in figures]}"
        )
    cells = np.asarray(figures, np.float64)
    if np.isnan(cells).any():
        raise ValueError("an interquartile mean needs figures that are no NaN")

    def middle(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        """Interquartile mean of each resample `[..., cells]`."""
        del axis
        drawn = cells[chosen].reshape(*chosen.shape[:-1], -1)
        return trim_mean(drawn, 0.25, axis=-1)

    every = np.arange(len(cells))
    low = high = math.nan
    if len(cells) > 1:
        rng = np.random.default_rng(0)
        options = {"vectorized": True, "n_resamples": 2000, "method": "percentile"}
        found = bootstrap((every,), middle, confidence_level=level, rng=rng, **options)
        low, high = map(float, found.confidence_interval)
    return InterquartileMean(float(middle(every)), low, high, len(cells), cells.size)
