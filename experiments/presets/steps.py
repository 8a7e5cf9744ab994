"""Schedule, weight decay and floors of any preset's optimizer, by name.

`--lopt.schedule NAME` and `--lopt.weight-decay RATE` put `ScheduledSteps` and
`WeightDecay` around the optimizer of a preset of `experiments.train`, or change those
that are there; `--lopt.schedule.FIELD VALUE` then changes the schedule's fields. The
rule is learned under them, and the released artifact carries them.
`--lopt.epsilons NAME` sets the floors of its features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.command_line import InputError, take_name, take_option
from lopt.base import LearnedOptimizer
from lopt.per_parameter.epsilons import WIDTH_SAFE, Epsilons
from lopt.schedules import (
    AnySchedule,
    InfiniteSchedule,
    WarmupCosine,
    WarmupStableDecay,
)
from lopt.wrappers import ScheduledSteps, WeightDecay

SCHEDULES: dict[str, AnySchedule] = {
    "constant": "constant",
    "cosine": "cosine",
    "warmup_cosine": WarmupCosine(),
    "warmup_stable_decay": WarmupStableDecay(),
    "infinite": InfiniteSchedule(),
}
"""Schedules by name, with the defaults of their fields."""
EPSILONS = ("paper", "width_safe")
"""Names of floors: those of the optimizer's class, and `WIDTH_SAFE`."""


class Steps(NamedTuple):
    """Changes of an optimizer; None leaves it as it is."""

    schedule: AnySchedule | None = None
    weight_decay: float | None = None
    epsilons: str | None = None

    def of(self, optimizer: Any) -> Any:
        """Returns the optimizer with these changes.

        Raises:
            ValueError: if floors are asked for and the optimizer has none.
        """
        if self.epsilons is not None:
            changed = _with_epsilons(optimizer, self.epsilons)
            if changed is None:
                raise ValueError(
                    f"--lopt.epsilons {self.epsilons}: {type(optimizer).__name__} has "
                    "no features with floors: leave it out"
                )
            optimizer = changed
        return _wrapped(optimizer, self.schedule, self.weight_decay)


def take_steps(arguments: Sequence[str]) -> tuple[Steps, list[str]]:
    """Takes the three options out of a command line, and returns the rest too.

    Raises:
        InputError: if a name is unknown, or the weight decay is no number ≥ 0.
    """
    schedule, rest = take_name(arguments, "--lopt.schedule", "schedule", SCHEDULES)
    decay, rest = take_option(rest, "--lopt.weight-decay", "a number")
    epsilons, rest = take_name(rest, "--lopt.epsilons", "floors", EPSILONS)
    chosen = None if schedule is None else SCHEDULES[schedule]
    return Steps(chosen, None if decay is None else _number(decay), epsilons), rest


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"--lopt.weight-decay {text!r} must be a number, at least 0")
    return value


def _wrapped(
    optimizer: Any, schedule: AnySchedule | None, weight_decay: float | None
) -> Any:
    """Returns the optimizer under a schedule and with decay, in the usual order."""
    scheduled, decayed = ScheduledSteps(optimizer), WeightDecay(optimizer, 0.0)
    if isinstance(optimizer, ScheduledSteps):
        scheduled, optimizer = optimizer, optimizer.inner
    if isinstance(optimizer, WeightDecay):
        decayed, optimizer = optimizer, optimizer.inner
    if weight_decay is not None:
        decayed = dataclasses.replace(decayed, weight_decay=weight_decay)
    if schedule is not None:
        scheduled = dataclasses.replace(scheduled, schedule=schedule)
    # Wrappers that change nothing are left out.
    if decayed.weight_decay:
        optimizer = dataclasses.replace(decayed, inner=optimizer)
    if scheduled.schedule != "constant" or scheduled.learning_rate != 1.0:
        optimizer = dataclasses.replace(scheduled, inner=optimizer)
    return optimizer


def _with_epsilons(optimizer: Any, name: str) -> Any | None:
    """Returns the optimizer, and all that it wraps, with other floors; None if none."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(optimizer):
        value = getattr(optimizer, field.name)
        if isinstance(value, Epsilons):
            changes[field.name] = WIDTH_SAFE if name == "width_safe" else field.default
        elif isinstance(value, LearnedOptimizer):
            inner = _with_epsilons(value, name)
            if inner is not None:
                changes[field.name] = inner
    return dataclasses.replace(optimizer, **changes) if changes else None
