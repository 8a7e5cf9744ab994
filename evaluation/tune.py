"""Baselines tuned by the very figure that is reported.

For each schedule, every learning rate of a √2 grid is run on tuning seeds; the
criterion is the mean over steps and seeds of the training-batch loss. An optimum at the
edge of its grid widens the grid by an octave and is looked for again. Nothing is reused
between widths, depths and horizons. What this costs is part of the result.

Results are cached on disk under a hash of everything that determines them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configuration import encoding
from configuration.fields import configuration
from evaluation import run, tuning_cache
from lopt.base import Specs, Theta
from lopt.baselines import (
    SGD,
    Baseline,
    Lion,
    Muon,
    Prodigy,
    Schedule,
    learning_rate_schedule,
)
from metatrain.streaming import HostDataset
from tasks import description
from tasks.base import Dataset, Task

SCHEMA_VERSION = 1
"""Raised when the mathematics of a tuning changes, so that no old cache is believed."""
TUNING_SEEDS = (1000, 1001, 1002)
SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine")


@configuration
class Grid:
    """Learning rates 2^(k/2) for k from `low` to `high`."""

    low: int
    """k of the smallest learning rate."""
    high: int
    """k of the largest."""
    max_widenings: int = 6
    """How often the grid may grow by an octave (2 points), for each schedule."""

    def __post_init__(self) -> None:
        if self.high - self.low < 2:
            raise ValueError(
                f"grid.high = {self.high} must be at least grid.low + 2 = "
                f"{self.low + 2}: an optimum inside needs three points"
            )
        if self.max_widenings < 0:
            raise ValueError(
                f"max_widenings = {self.max_widenings} must not be negative"
            )


ADAM_GRID = Grid(-20, -6)
"""2⁻¹⁰ … 2⁻³: 15 points."""
SGD_GRID = Grid(-12, 2)
"""2⁻⁶ … 2: 15 points."""
GRIDS: dict[type, Grid] = {
    SGD: SGD_GRID,
    Lion: Grid(-26, -12),  # 3 to 10 times below Adam's
    Muon: Grid(-16, -2),
    Prodigy: Grid(-7, 7),  # around 1
}
"""The first grids of baselines that do not begin with Adam's."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One learning rate's outcome on the tuning seeds."""

    schedule: Schedule
    learning_rate: float
    mean_loss: float  # nats, capped, mean over steps and tuning seeds
    diverged: int  # how many of the tuning seeds diverged


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A choice, and everything it was chosen from."""

    learning_rate: float
    schedule: Schedule
    mean_loss: float
    """Criterion of the choice, on the tuning seeds."""
    points: tuple[Point, ...]
    """The whole grid, by schedule and learning rate."""
    num_runs: int
    inner_steps: int
    """Of all runs together."""
    widenings: int
    at_edge: bool
    """Whether the choice still stood at its grid's edge when the bound was reached."""
    seconds: float
    """Wall time when it was computed, compilation included."""


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A baseline whose schedule, too, is part of θ.

    So that one compiled program serves both schedules: at the widths of a suite,
    compiling takes longer than training.
    """

    baseline: Baseline
    """Its learning rate and schedule are replaced by those of θ."""

    def __post_init__(self) -> None:
        if self.baseline.schedule not in SCHEDULES:
            raise ValueError(
                f"baseline.schedule = {self.baseline.schedule!r} must be one of "
                f"{SCHEDULES}: tuning tries these"
            )

    def init(self, key: jax.Array) -> Theta:
        """θ of the baseline itself."""
        del key
        cosine = self.baseline.schedule == "cosine"
        theta = scheduled_theta(
            [self.baseline.learning_rate], ["cosine" if cosine else "constant"]
        )
        return jax.tree.map(lambda x: x[0], theta)

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer, with the learning rate and the schedule of θ."""
        constant, cosine = (
            learning_rate_schedule(theta["learning_rate"], schedule, num_steps)
            for schedule in SCHEDULES
        )

        def rate(count: Any) -> jax.Array:
            return jnp.where(theta["cosine"], cosine(count), constant(count))

        return self.baseline.with_rate(rate, specs)


def scheduled_theta(rates: Sequence[float], schedules: Sequence[Schedule]) -> Theta:
    """θ of `Scheduled` for several runs, `[R]` in front."""
    return {
        "learning_rate": jnp.asarray(rates, jnp.float32),
        "cosine": jnp.asarray([schedule == "cosine" for schedule in schedules]),
    }


def _unit(baseline: Baseline) -> Baseline:
    return dataclasses.replace(baseline, learning_rate=1.0, schedule="constant")


def grid_for(baseline: Baseline) -> Grid:
    """The first grid of a baseline."""
    return GRIDS.get(type(baseline), ADAM_GRID)


def tune(
    task: Task,
    baseline: Baseline,
    num_steps: int,
    *,
    grid: Grid | None = None,
    seeds: Sequence[int] = TUNING_SEEDS,
    schedules: Sequence[Schedule] = SCHEDULES,
    dataset: Dataset | HostDataset | None = None,
    cache_dir: str | Path | None = None,
) -> Tuning:
    """Chooses learning rate and schedule of a baseline for one task and horizon.

    Args:
        task: what is trained.
        baseline: its learning rate and schedule are replaced by those of the grid.
        num_steps: inner steps (`H`).
        grid: learning rates to begin with; by default the baseline's own.
        seeds: tuning seeds, none of which is reported.
        schedules: tried, all with their own grids.
        dataset: the task's data, if it is at hand.
        cache_dir: where results are kept; None computes anew.
    """
    grid = grid or grid_for(baseline)
    baseline = Scheduled(baseline).baseline  # refuses what cannot be tuned
    if cache_dir is None:
        return _tune(task, baseline, num_steps, grid, seeds, schedules, dataset)
    # Other contents under the same name are other data.
    contents = description.fingerprint(task)
    about = encoding.canonical(
        ({"data": contents} if contents else {})
        | {
            "schema": SCHEMA_VERSION,
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "baseline": _unit(baseline),
            "task": task,
            "num_steps": num_steps,
            "grid": grid,
            "seeds": list(seeds),
            "schedules": list(schedules),
        }
    )
    stored = tuning_cache.read(cache_dir, about)
    if stored is not None:
        return encoding.decode(Tuning, stored, "tuning", {})
    tuning = _tune(task, baseline, num_steps, grid, seeds, schedules, dataset)
    tuning_cache.write(cache_dir, about, encoding.encode(tuning, {}))
    return tuning


def _tune(
    task: Task,
    baseline: Baseline,
    num_steps: int,
    grid: Grid,
    seeds: Sequence[int],
    schedules: Sequence[Schedule],
    dataset: Dataset | HostDataset | None,
) -> Tuning:
    begin = time.perf_counter()
    dataset = task.load_data() if dataset is None else dataset
    points: list[Point] = []
    widenings, edges = 0, {}
    for schedule in schedules:
        found, num_widened, edges[schedule] = _search(
            task, baseline, schedule, num_steps, grid, seeds, dataset
        )
        points += found
        widenings += num_widened
    best = min(points, key=lambda point: point.mean_loss)
    num_runs = len(points) * len(seeds)
    return Tuning(
        learning_rate=best.learning_rate,
        schedule=best.schedule,
        mean_loss=best.mean_loss,
        points=tuple(points),
        num_runs=num_runs,
        inner_steps=num_runs * num_steps,
        widenings=widenings,
        at_edge=edges[best.schedule],
        seconds=time.perf_counter() - begin,
    )


def _search(
    task: Task,
    baseline: Baseline,
    schedule: Schedule,
    num_steps: int,
    grid: Grid,
    seeds: Sequence[int],
    dataset: Dataset | HostDataset,
) -> tuple[list[Point], int, bool]:
    """One schedule's points, how often it widened, whether its best is at the edge."""
    scores: dict[int, Point] = {}
    low, high, widenings = grid.low, grid.high, 0
    while True:
        new = [k for k in range(low, high + 1) if k not in scores]
        scores |= _score(task, baseline, schedule, num_steps, new, seeds, dataset)
        best = min(scores, key=lambda k: scores[k].mean_loss)
        at_edge = best in (low, high)
        if not at_edge or widenings == grid.max_widenings:
            return [scores[k] for k in sorted(scores)], widenings, at_edge
        low, high = (low - 2, high) if best == low else (low, high + 2)
        widenings += 1


def _score(
    task: Task,
    baseline: Baseline,
    schedule: Schedule,
    num_steps: int,
    exponents: Sequence[int],
    seeds: Sequence[int],
    dataset: Dataset | HostDataset,
) -> dict[int, Point]:
    rates = [2.0 ** (k / 2) for k in exponents]
    runs = [(rate, seed) for rate in rates for seed in seeds]
    same: list[Schedule] = [schedule] * len(runs)
    theta = scheduled_theta([rate for rate, _ in runs], same)
    result = run.evaluate_each(
        task, Scheduled(baseline), theta, num_steps, [seed for _, seed in runs], dataset
    )
    losses = result.mean_loss.reshape(len(rates), len(seeds)).astype(np.float64)
    diverged = result.diverged.reshape(len(rates), len(seeds))
    return {
        k: Point(schedule, rate, float(loss.mean()), int(lost.sum()))
        for k, rate, loss, lost in zip(exponents, rates, losses, diverged, strict=True)
    }
