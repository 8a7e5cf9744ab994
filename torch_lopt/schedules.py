"""Learning-rate schedules over a run, the same as those of the JAX library.

A schedule's level is a fraction of the learning rate: 1 after the warm-up. Lengths are
fractions of the run, rounded to whole steps, or steps (`unit="steps"`). JAX counts
steps and fractions in float32; boundaries between phases are rounded as there, or a
phase would begin a step earlier or later.
"""

import ctypes
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

UNITS = ("fraction", "steps")

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: math.sin(0.5 * math.pi * x) ** 2,
    "sqrt": math.sqrt,
    "inverse_sqrt": lambda x: _fall(x) / _fall(1.0),
}
"""Share of the way from one level to the next after a share x of a phase."""


def _fall(x: float) -> float:
    return 1.0 - 1.0 / math.sqrt(1.0 + 10.0 * x)


def single(x: float) -> float:
    """Returns the number rounded to float32, infinite beyond its range."""
    return ctypes.c_float(x).value


class Phase(NamedTuple):
    """A piece of a schedule, up to the step `end`, between two levels."""

    end: float
    start_level: float
    end_level: float
    shape: str = "linear"

    def at(self, x: float) -> float:
        """Returns the level after a share x of the phase, in [0, 1)."""
        if self.start_level == self.end_level:
            return self.start_level
        if self.shape == "exponential":
            return self.start_level ** (1.0 - x) * self.end_level**x
        way = CURVES[self.shape](x)
        return self.start_level + way * (self.end_level - self.start_level)


class Phases:
    """Base class of the schedules made of phases.

    Attributes:
        unit: of lengths, `"fraction"` or `"steps"`.
        lengths: names of the fields that are lengths.
        levels: names of the fields that are levels, in [0, 1].
        shapes: values of the field `shape`, if there is one.
    """

    unit: str
    lengths: ClassVar[tuple[str, ...]] = ()
    levels: ClassVar[tuple[str, ...]] = ()
    shapes: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        unit = self.unit
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {UNITS}, is {unit!r}")
        shape = getattr(self, "shape", None)
        if self.shapes and shape not in self.shapes:
            raise ValueError(f"shape must be one of {self.shapes}, is {shape!r}")
        for name in self.levels:
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], is {value}")
        lengths = [getattr(self, name) for name in self.lengths]
        most = 1.0 if unit == "fraction" else math.inf
        for name, value in zip(self.lengths, lengths, strict=True):
            if not 0.0 <= value <= most or value == math.inf:
                raise ValueError(
                    f"{name} must be finite and in [0, {most}] with unit={unit!r}, "
                    f"is {value}"
                )
            if unit == "steps" and value != int(value):
                raise ValueError(f"{name} must be a whole number of steps, is {value}")
        if unit == "fraction" and sum(lengths) > 1 + 1e-9:
            raise ValueError(
                f"{' + '.join(self.lengths)} must be at most 1, the whole run, is "
                f"{sum(lengths)}"
            )

    @property
    def needs_num_steps(self) -> bool:
        """Whether levels depend on the length of the run."""
        lengths = [getattr(self, name) for name in self.lengths]
        return self.unit == "fraction" and any(lengths)

    def level(self, step: int, num_steps: int) -> float:
        """Returns the fraction of the learning rate at a step.

        Args:
            step: updates done before this one.
            num_steps: updates of the whole run; any number if it is not needed.
        """
        position, begin, level = single(step), 0.0, 1.0
        for phase in self.phases(num_steps):
            # A run shorter than its phases leaves no time for some of them.
            end = max(phase.end, begin)
            if position < end:
                return phase.at((position - begin) / (end - begin))
            begin, level = end, phase.end_level
        return level

    def phases(self, num_steps: int) -> list[Phase]:
        """Returns the phases in their order; the level stays after the last one."""
        raise NotImplementedError

    def _ends(self, lengths: Sequence[float], num_steps: int) -> list[float]:
        """Returns the steps at which phases of these lengths end."""
        ends, total = [], 0.0
        for length in lengths:
            # Sums are rounded, not lengths, so that roundings do not add up.
            total += length
            end = single(total)
            if self.unit == "fraction":
                end = float(round(single(end * single(num_steps))))
            ends.append(end)
        return ends


@dataclasses.dataclass(frozen=True)
class Constant(Phases):
    """The learning rate itself, after a linear warm-up from `initial`."""

    lengths: ClassVar[tuple[str, ...]] = ("warmup",)
    levels: ClassVar[tuple[str, ...]] = ("initial",)
    warmup: float = 0.0
    initial: float = 0.0
    unit: str = "fraction"

    def phases(self, num_steps: int) -> list[Phase]:
        """Returns the warm-up."""
        (warm,) = self._ends([self.warmup], num_steps)
        return [Phase(warm, self.initial, 1.0)]


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Phases):
    """A warm-up, then half a cosine to `final` at the end of the run."""

    lengths: ClassVar[tuple[str, ...]] = ("warmup",)
    levels: ClassVar[tuple[str, ...]] = ("initial", "final")
    warmup: float = 0.01
    initial: float = 0.0
    final: float = 0.0
    unit: str = "fraction"

    @property
    def needs_num_steps(self) -> bool:
        """Whether levels depend on the length of the run: always."""
        return True

    def phases(self, num_steps: int) -> list[Phase]:
        """Returns warm-up and cosine."""
        (warm,) = self._ends([self.warmup], num_steps)
        return [
            Phase(warm, self.initial, 1.0),
            Phase(single(num_steps), 1.0, self.final, "cosine"),
        ]


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Phases):
    """A warm-up, a constant phase, and a decay to `final` at the end of the run.

    The decay's shape "sqrt" is 1 - √x, which falls fast at first.
    """

    lengths: ClassVar[tuple[str, ...]] = ("warmup", "decay")
    levels: ClassVar[tuple[str, ...]] = ("initial", "final")
    shapes: ClassVar[tuple[str, ...]] = ("linear", "cosine", "sqrt")
    warmup: float = 0.01
    decay: float = 0.2
    initial: float = 0.0
    final: float = 0.0
    shape: str = "linear"
    unit: str = "fraction"

    @property
    def needs_num_steps(self) -> bool:
        """Whether levels depend on the length of the run: always."""
        return True

    def phases(self, num_steps: int) -> list[Phase]:
        """Returns warm-up, constant phase and decay."""
        whole = 1.0 if self.unit == "fraction" else num_steps
        stable = max(whole - self.warmup - self.decay, 0.0)
        warm, decay = self._ends([self.warmup, stable], num_steps)
        return [
            Phase(warm, self.initial, 1.0),
            Phase(decay, 1.0, 1.0),
            Phase(single(num_steps), 1.0, self.final, self.shape),
        ]


@dataclasses.dataclass(frozen=True)
class InfiniteSchedule(Phases):
    """Warm-up, cooldown to `level_constant`, constant phase, exponential annealing.

    With `annealing=0` the constant phase lasts for ever.
    """

    lengths: ClassVar[tuple[str, ...]] = ("warmup", "cooldown", "constant", "annealing")
    levels: ClassVar[tuple[str, ...]] = ("initial", "level_constant", "final")
    shapes: ClassVar[tuple[str, ...]] = ("linear", "cosine", "inverse_sqrt")
    warmup: float = 0.01
    cooldown: float = 0.59
    constant: float = 0.25
    annealing: float = 0.15
    level_constant: float = 0.55
    final: float = 0.1
    initial: float = 0.0
    shape: str = "cosine"
    unit: str = "fraction"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.final <= self.level_constant:
            raise ValueError(
                f"final must be in (0, level_constant = {self.level_constant}], is "
                f"{self.final}"
            )

    def phases(self, num_steps: int) -> list[Phase]:
        """Returns the two or four phases."""
        lengths = [getattr(self, name) for name in self.lengths]
        warm, cool, stable, end = self._ends(lengths, num_steps)
        level = self.level_constant
        phases = [Phase(warm, self.initial, 1.0), Phase(cool, 1.0, level, self.shape)]
        if self.annealing > 0:
            phases.append(Phase(stable, level, level))
            phases.append(Phase(end, level, self.final, "exponential"))
        return phases


SCHEDULES = (Constant, WarmupCosine, WarmupStableDecay, InfiniteSchedule)
NAMES = ("constant", "cosine")
"""Schedules without settings: the level 1, and a cosine from 1 to 0 over the run."""

Schedule = str | Phases


def check_schedule(schedule: object) -> None:
    """Refuses what is neither a name nor phases."""
    known = schedule in NAMES if isinstance(schedule, str) else False
    if not known and not isinstance(schedule, SCHEDULES):
        classes = [kind.__name__ for kind in SCHEDULES]
        raise ValueError(
            f"schedule must be one of {NAMES} or of {classes}, is {schedule!r:.80}"
        )


def needs_num_steps(schedule: Schedule) -> bool:
    """Returns whether a schedule depends on the length of the run."""
    if isinstance(schedule, str):
        return schedule == "cosine"
    return schedule.needs_num_steps


def level(schedule: Schedule, step: int, num_steps: int) -> float:
    """Returns the fraction of the learning rate at a step.

    Args:
        schedule: `"constant"`, `"cosine"`, or phases.
        step: updates done before this one.
        num_steps: updates of the whole run, at least 1.
    """
    if not isinstance(schedule, str):
        return schedule.level(step, num_steps)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(step / num_steps, 1.0)))
