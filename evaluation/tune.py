"""Tuning of baselines by the figure that is reported.

For each schedule, every learning rate of a √2 grid is run on tuning seeds; the
criterion is the mean over steps and seeds of the training-batch loss. An optimum at the
edge of the grid widens it by an octave. Every width, depth and horizon is tuned anew,
and the result says what the tuning cost.

Results are cached on disk under a hash of everything that determines them.
"""

from __future__ import annotations

import dataclasses
import operator
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configuration import encoding, identity
from configuration.fields import configuration
from configuration.identity import UnidentifiedError
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
from metatrain.small_steps import small_steps_warning
from metatrain.streaming import HostDataset
from tasks.base import Dataset, Task

TUNING = 2
"""Raised when the mathematics of a tuning changes, so that old results are ignored."""
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
    """Bound on the grid's growth by octaves (2 points) for each schedule."""

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
"""First grids of baselines that do not begin with Adam's."""


@dataclasses.dataclass(frozen=True)
class Point:
    """Outcome of one learning rate on the tuning seeds."""

    schedule: Schedule
    learning_rate: float
    mean_loss: float  # in the task's unit, capped, mean over steps and tuning seeds
    diverged: int  # number of tuning seeds that diverged


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A chosen learning rate and schedule, and the grid it was chosen from."""

    learning_rate: float
    schedule: Schedule
    mean_loss: float
    """Criterion of the choice."""
    points: tuple[Point, ...]
    """All points, by schedule and learning rate."""
    num_runs: int
    inner_steps: int
    """Total over all runs."""
    widenings: int
    at_edge: bool
    """Whether the choice still was at the grid's edge after `max_widenings`."""
    seconds: float
    """Wall time, compilation included."""


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A baseline with the schedule in θ, so that one program serves both schedules.

    At the widths of a suite, compiling takes longer than training.
    """

    baseline: Baseline
    """The baseline; θ replaces its learning rate and schedule."""

    def __post_init__(self) -> None:
        if self.baseline.schedule not in SCHEDULES:
            raise ValueError(
                f"baseline.schedule = {self.baseline.schedule!r} must be one of "
                f"{SCHEDULES}: tuning tries these"
            )

    def init(self, key: jax.Array) -> Theta:
        """Returns the θ of the baseline's own learning rate and schedule."""
        del key
        schedule: Any = self.baseline.schedule
        theta = scheduled_theta([self.baseline.learning_rate], [schedule])
        return jax.tree.map(lambda x: x[0], theta)

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer with the learning rate and schedule of θ."""
        constant, cosine = (
            learning_rate_schedule(theta["learning_rate"], schedule, num_steps)
            for schedule in SCHEDULES
        )

        def rate(count: Any) -> jax.Array:
            return jnp.where(theta["cosine"], cosine(count), constant(count))

        return self.baseline.with_rate(rate, specs)


def scheduled_theta(rates: Sequence[float], schedules: Sequence[Schedule]) -> Theta:
    """Returns θ of `Scheduled` for several runs, `[R]` in front."""
    return {
        "learning_rate": jnp.asarray(rates, jnp.float32),
        "cosine": jnp.asarray([schedule == "cosine" for schedule in schedules]),
    }


def grid_for(baseline: Baseline) -> Grid:
    """Returns the first grid of a baseline."""
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
        baseline: the optimizer; its learning rate and schedule are replaced.
        num_steps: inner steps (`H`).
        grid: first learning rates; by default those of the baseline.
        seeds: tuning seeds, none of which is reported.
        schedules: schedules to try, each with a grid of its own.
        dataset: the task's own data; None loads it.
        cache_dir: folder of cached results; None computes anew, as does, with a
            warning, a task that has no identity (see `configuration.identity`).

    Warns of tensors that the baseline hardly moves (see `metatrain.small_steps`).
    """
    grid = grid or grid_for(baseline)
    scheduled = Scheduled(baseline)

    def compute() -> Tuning:
        if warning := small_steps_warning(baseline, {task.family: task}):
            warnings.warn(warning, stacklevel=3)
        data = task.load_data() if dataset is None else dataset
        return _tune(task, scheduled, num_steps, grid, seeds, schedules, data)

    if cache_dir is None:
        return compute()
    unit = dataclasses.replace(baseline, learning_rate=1.0, schedule="constant")

    def identify() -> dict[str, Any]:
        return {
            "tuning": TUNING,
            "baseline": identity.of(unit),
            "task": identity.of(task),
            "num_steps": num_steps,
            "grid": identity.of(grid),
            "seeds": list(seeds),
            "schedules": list(schedules),
        } | identity.surroundings()

    try:
        about = identify()
    except UnidentifiedError as error:
        warnings.warn(f"this tuning is not cached: {error}", stacklevel=2)
        return compute()
    if dataset is not None and not _is_own(task, dataset):
        raise ValueError(
            f"dataset is not the task's own data ({task.data_name}), which identifies "
            "a tuning in cache_dir: leave one of them out"
        )
    run.renew(task, identity.digest([about["task"], identity.surroundings()]))
    stored = tuning_cache.read(cache_dir, about)
    if stored is not None:
        return encoding.decode(Tuning, stored, "tuning", {})
    tuning = compute()
    # What was read may not be what was identified, if something has changed since.
    if changed := identity.differences(about, identify()):
        what = f"{identity.described(changed)}: changed while it ran"
        warnings.warn(f"this tuning is not cached: {what}", stacklevel=2)
    else:
        tuning_cache.write(cache_dir, about, encoding.encode(tuning, {}))
    return tuning


def _is_own(task: Task, dataset: Dataset | HostDataset) -> bool:
    """Whether a dataset is the task's own; one on the host is taken to be."""
    if isinstance(dataset, HostDataset):
        return True
    given, own = (jax.tree.leaves(tree) for tree in (dataset, task.load_data()))
    if len(given) == len(own) and all(map(operator.is_, given, own)):
        return True
    return identity.of_arrays(dataset) == identity.of_arrays(task.load_data())


def _tune(
    task: Task,
    scheduled: Scheduled,
    num_steps: int,
    grid: Grid,
    seeds: Sequence[int],
    schedules: Sequence[Schedule],
    dataset: Dataset | HostDataset,
) -> Tuning:
    begin = time.perf_counter()

    def score(schedule: Schedule, exponents: Sequence[int]) -> list[Point]:
        rates = [2.0 ** (k / 2) for k in exponents]
        repeated = [rate for rate in rates for _ in seeds]
        same: list[Schedule] = [schedule] * len(repeated)
        theta = scheduled_theta(repeated, same)
        each = list(seeds) * len(rates)
        result = run.evaluate_each(task, scheduled, theta, num_steps, each, dataset)
        shape = (len(rates), len(seeds))
        losses = result.mean_loss.reshape(shape).astype(np.float64).mean(1)
        diverged = result.diverged.reshape(shape).sum(1)
        return [
            Point(schedule, rate, float(loss), int(lost))
            for rate, loss, lost in zip(rates, losses, diverged, strict=True)
        ]

    points: list[Point] = []
    widenings, edges = 0, {}
    for schedule in schedules:
        search = partial(score, schedule)
        found, num_widened, edges[schedule] = _search(search, grid)
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
    score: Callable[[Sequence[int]], list[Point]], grid: Grid
) -> tuple[list[Point], int, bool]:
    """One schedule's points, number of widenings, whether the best is at the edge."""
    scores: dict[int, Point] = {}
    low, high, widenings = grid.low, grid.high, 0
    while True:
        new = [k for k in range(low, high + 1) if k not in scores]
        scores |= zip(new, score(new), strict=True)
        best = min(scores, key=lambda k: scores[k].mean_loss)
        at_edge = best in (low, high)
        if not at_edge or widenings == grid.max_widenings:
            return [scores[k] for k in sorted(scores)], widenings, at_edge
        low, high = (low - 2, high) if best == low else (low, high + 2)
        widenings += 1
