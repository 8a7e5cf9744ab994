"""Baselines tuned by the very figure that is reported.

For each schedule, every learning rate of a √2 grid is run on tuning seeds; the
criterion is the mean over steps and seeds of the training-batch loss. An optimum at the
edge of its grid widens the grid by an octave and is looked for again. Nothing is reused
between widths, depths and horizons. What this costs is part of the result.

Results are cached on disk under a hash of everything that determines them.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evaluation import run
from lopt.baselines import SGD, Baseline, Schedule
from tasks.base import Dataset, Task

SCHEMA_VERSION = 1
"""Raised when the mathematics of a tuning changes, so that no old cache is believed."""
TUNING_SEEDS = (1000, 1001, 1002)
SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
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


def grid_for(baseline: Baseline) -> Grid:
    """The first grid of a baseline: Adam's and its kin's, or SGD's."""
    return SGD_GRID if isinstance(baseline, SGD) else ADAM_GRID


def tune(
    task: Task,
    baseline: Baseline,
    num_steps: int,
    *,
    grid: Grid | None = None,
    seeds: Sequence[int] = TUNING_SEEDS,
    schedules: Sequence[Schedule] = SCHEDULES,
    dataset: Dataset | None = None,
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
    if cache_dir is None:
        return _tune(task, baseline, num_steps, grid, seeds, schedules, dataset)
    about = _canonical(
        {
            "schema": SCHEMA_VERSION,
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "baseline": dataclasses.replace(
                baseline, learning_rate=1.0, schedule="constant"
            ),
            "task": task,
            "num_steps": num_steps,
            "grid": grid,
            "seeds": list(seeds),
            "schedules": list(schedules),
        }
    )
    path = Path(cache_dir) / f"{_digest(about)[:32]}.json"
    cached = _read(path, about)
    if cached is not None:
        return cached
    tuning = _tune(task, baseline, num_steps, grid, seeds, schedules, dataset)
    _write(path, about, tuning)
    return tuning


def _tune(
    task: Task,
    baseline: Baseline,
    num_steps: int,
    grid: Grid,
    seeds: Sequence[int],
    schedules: Sequence[Schedule],
    dataset: Dataset | None,
) -> Tuning:
    begin = time.perf_counter()
    dataset = task.load_data() if dataset is None else dataset
    points: list[Point] = []
    widenings, edges = 0, {}
    for schedule in schedules:
        lopt = dataclasses.replace(baseline, schedule=schedule)
        found, num_widened, edges[schedule] = _search(
            task, lopt, num_steps, grid, seeds, dataset
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
    lopt: Baseline,
    num_steps: int,
    grid: Grid,
    seeds: Sequence[int],
    dataset: Dataset,
) -> tuple[list[Point], int, bool]:
    """One schedule's points, how often it widened, whether its best is at the edge."""
    scores: dict[int, Point] = {}
    low, high, widenings = grid.low, grid.high, 0
    while True:
        new = [k for k in range(low, high + 1) if k not in scores]
        scores |= _score(task, lopt, num_steps, new, seeds, dataset)
        best = min(scores, key=lambda k: scores[k].mean_loss)
        at_edge = best in (low, high)
        if not at_edge or widenings == grid.max_widenings:
            return [scores[k] for k in sorted(scores)], widenings, at_edge
        low, high = (low - 2, high) if best == low else (low, high + 2)
        widenings += 1


def _score(
    task: Task,
    lopt: Baseline,
    num_steps: int,
    exponents: Sequence[int],
    seeds: Sequence[int],
    dataset: Dataset,
) -> dict[int, Point]:
    rates = [2.0 ** (k / 2) for k in exponents]
    theta = {"learning_rate": jnp.repeat(jnp.asarray(rates), len(seeds))}
    result = run.evaluate_each(
        task, lopt, theta, num_steps, list(seeds) * len(rates), dataset
    )
    losses = result.mean_loss.reshape(len(rates), len(seeds)).astype(np.float64)
    diverged = result.diverged.reshape(len(rates), len(seeds))
    return {
        k: Point(lopt.schedule, rate, float(loss.mean()), int(lost.sum()))
        for k, rate, loss, lost in zip(exponents, rates, losses, diverged, strict=True)
    }


def _canonical(value: Any) -> Any:
    """JSON that names classes and fields, so equal descriptions mean equal runs."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"class": type(value).__qualname__} | _canonical(fields)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, dict):
        return {str(name): _canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} of {type(value)} has no canonical JSON")


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, about: Any) -> Tuning | None:
    """The cached tuning; None, with a warning, if the file is not as it was written."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        return _distrust(path, error)
    try:
        content = json.loads(text)
        stored = content["tuning"]
        if content["about"] != about or content["sha256"] != _digest(stored):
            raise ValueError("its checksum or description does not agree")
        points = tuple(Point(**point) for point in stored["points"])
        return Tuning(**{**stored, "points": points})
    except (ValueError, KeyError, TypeError) as error:
        return _distrust(path, error)


def _distrust(path: Path, error: Exception) -> None:
    warnings.warn(
        f"the tuning cache {path} is damaged and is computed anew: {error}",
        stacklevel=4,
    )


def _write(path: Path, about: Any, tuning: Tuning) -> None:
    """Writes by a rename, so that another process sees all of the file or nothing."""
    stored = dataclasses.asdict(tuning)
    content = {"about": about, "sha256": _digest(stored), "tuning": stored}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
