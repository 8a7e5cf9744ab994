"""Learning-rate schedules, as fractions of the learning rate over a run.

A schedule is a chain of phases, each of which leads from one level to the next:

* `Constant`: warm-up, then constant.
* `WarmupCosine`: warm-up, then a cosine to the end of the run.
* `WarmupStableDecay`: warm-up, constant, then a decay over the last steps of the run.
* `InfiniteSchedule`: warm-up, then cooldown to a constant level that may last for ever;
  a final annealing is branched off where a model is wanted.

Levels are fractions of the learning rate, which stays one number (a baseline's θ).
Lengths of phases are fractions of the run, rounded to whole steps, or, with
`unit="steps"`, steps. A phase ends exactly where the next one begins.

References:
    Hägele et al., arXiv:2405.18392 (warm-up-stable-decay); Ibrahim et al.,
    arXiv:2403.08763, Section 7.4, and Singh et al., arXiv:2503.02844, Equation 1
    (infinite).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from configuration.fields import OPEN, checked, configuration, shown
from lopt import checks

Schedule = Literal["constant", "cosine"]
"""Schedules without settings."""
Unit = Literal["fraction", "steps"]
Shape = Literal["linear", "cosine", "sqrt", "inverse_sqrt", "exponential"]


class Phase(NamedTuple):
    """One piece of a schedule."""

    length: float
    """Length in the schedule's unit; an infinite phase ends with the run."""
    start: float
    end: float
    shape: Shape = "linear"


class SchedulePhases(abc.ABC):
    """A schedule made of phases."""

    unit: Unit

    @abc.abstractmethod
    def _phases(self, num_steps: int | jax.Array) -> list[Phase]: ...

    def level(
        self, step: jax.typing.ArrayLike, num_steps: int | jax.Array
    ) -> jax.Array:
        """Returns the fraction of the learning rate at a step, `[]`.

        Args:
            step: `[]`, updates done before this one; may be traced.
            num_steps: `[]`, updates of the whole run; may be traced.
        """
        step = jnp.asarray(step, jnp.float32)
        end_of_run = jnp.asarray(num_steps, jnp.float32)
        phases = self._phases(num_steps)
        level, begin, total = jnp.float32(phases[0].start), jnp.float32(0.0), 0.0
        for phase in phases:
            # Ends are rounded sums, so that roundings do not add up.
            total = total + phase.length
            if isinstance(phase.length, float) and math.isinf(phase.length):
                end = end_of_run
            elif self.unit == "fraction":
                end = jnp.round(total * end_of_run)
            else:
                end = total
            length = jnp.maximum(end - begin, 0.0)
            done = (step - begin) / jnp.maximum(length, 1e-6)
            done = jnp.where(length > 0, done, 1.0)
            value = _shape(phase, jnp.clip(done, 0.0, 1.0))
            level = jnp.where(step >= begin, value, level)
            begin = begin + length
        return level


@configuration
class Constant(SchedulePhases):
    """The learning rate itself, after a warm-up."""

    warmup: float = 0.0
    """Length of the linear warm-up."""
    initial: float = 0.0
    """Level at step 0, if there is a warm-up."""
    unit: Unit = "fraction"
    """Unit of lengths: fractions of the run, or steps."""

    def __post_init__(self) -> None:
        _check(self, lengths=("warmup",), levels=("initial",))

    def _phases(self, num_steps: int | jax.Array) -> list[Phase]:
        del num_steps
        return [Phase(self.warmup, self.initial, 1.0)]


@configuration
class WarmupCosine(SchedulePhases):
    """A warm-up, then half a cosine that reaches `final` at the end of the run."""

    warmup: float = 0.01
    """Length of the linear warm-up."""
    initial: float = 0.0
    """Level at step 0, if there is a warm-up."""
    final: float = 0.0
    """Level at the end of the run and after it."""
    unit: Unit = "fraction"
    """Unit of lengths: fractions of the run, or steps."""

    def __post_init__(self) -> None:
        _check(self, lengths=("warmup",), levels=("initial", "final"))

    def _phases(self, num_steps: int | jax.Array) -> list[Phase]:
        del num_steps
        return [
            Phase(self.warmup, self.initial, 1.0),
            Phase(math.inf, 1.0, self.final, "cosine"),
        ]


@configuration
class WarmupStableDecay(SchedulePhases):
    """A warm-up, a constant phase, and a decay over the last steps of the run."""

    warmup: float = 0.01
    """Length of the linear warm-up."""
    decay: float = 0.2
    """Length of the decay, which ends with the run."""
    initial: float = 0.0
    """Level at step 0, if there is a warm-up."""
    final: float = 0.0
    """Level at the end of the run and after it."""
    shape: Literal["linear", "cosine", "sqrt"] = "linear"
    """Shape of the decay; sqrt is 1 − √x, which falls fast at first."""
    unit: Unit = "fraction"
    """Unit of lengths: fractions of the run, or steps."""

    def __post_init__(self) -> None:
        _check(self, lengths=("warmup", "decay"), levels=("initial", "final"))

    def _phases(self, num_steps: int | jax.Array) -> list[Phase]:
        stable = 1.0 - self.warmup - self.decay
        if self.unit == "steps":
            # In a run shorter than warm-up and decay, decay follows on warm-up.
            stable = jnp.maximum(num_steps - self.warmup - self.decay, 0.0)
        return [
            Phase(self.warmup, self.initial, 1.0),
            Phase(stable, 1.0, 1.0),  # pyright: ignore[reportArgumentType]
            Phase(math.inf, 1.0, self.final, self.shape),
        ]


@configuration
class InfiniteSchedule(SchedulePhases):
    """Warm-up, cooldown to a constant level, and a final exponential annealing.

    The trunk of a continual run has `annealing=0`: the constant phase then lasts for
    ever. From a checkpoint at step s, `dataclasses.replace(trunk, constant=s − warmup −
    cooldown, annealing=...)` finishes it.
    """

    warmup: float = 0.01
    """Length of the linear warm-up."""
    cooldown: float = 0.59
    """Length of the cooldown from 1 to `level_constant`."""
    constant: float = 0.25
    """Length of the constant phase, unless there is no annealing after it."""
    annealing: float = 0.15
    """Length of the annealing; 0 goes on at the constant level."""
    level_constant: float = 0.55
    """Level of the constant phase."""
    final: float = 0.1
    """Level at the end of the annealing and after it."""
    initial: float = 0.0
    """Level at step 0, if there is a warm-up."""
    shape: Literal["linear", "cosine", "inverse_sqrt"] = "cosine"
    """Shape of the cooldown; inverse_sqrt is 1/√(1 + 10·x), scaled to the levels."""
    unit: Unit = "fraction"
    """Unit of lengths: fractions of the run, or steps."""

    def __post_init__(self) -> None:
        _check(
            self,
            lengths=("warmup", "cooldown", "constant", "annealing"),
            levels=("initial", "level_constant", "final"),
        )
        if not 0.0 < self.final <= self.level_constant:
            raise ValueError(
                f"final = {self.final} must be positive and at most level_constant = "
                f"{self.level_constant}: the annealing is exponential"
            )

    def _phases(self, num_steps: int | jax.Array) -> list[Phase]:
        del num_steps
        phases = [
            Phase(self.warmup, self.initial, 1.0),
            Phase(self.cooldown, 1.0, self.level_constant, self.shape),
        ]
        if self.annealing > 0:
            phases += [
                Phase(self.constant, self.level_constant, self.level_constant),
                Phase(self.annealing, self.level_constant, self.final, "exponential"),
            ]
        return phases


AnySchedule: TypeAlias = (
    Schedule | Constant | WarmupCosine | WarmupStableDecay | InfiniteSchedule
)
"""Type of a field `schedule`."""
RateField = Annotated[float, OPEN]
"""Type of a learning rate that may be traced, as `optax.inject_hyperparams` has it."""
ScheduleField = Annotated[AnySchedule, OPEN]
"""Type of a field `schedule` that also takes a schedule of optax."""


def check_rate(owner: Any) -> None:
    """Checks the fields `learning_rate` and `schedule`, of the two types above.

    An optax schedule is the rate itself, so there `learning_rate` stays at its default.
    """
    rate, schedule = owner.learning_rate, owner.schedule
    if callable(rate):
        raise ValueError(
            f"learning_rate = {shown(rate)} is a function: give it as schedule="
        )
    if not isinstance(rate, jax.Array):
        rate = checked("learning_rate", rate, float)
        object.__setattr__(owner, "learning_rate", rate)
        checks.positive(owner, "learning_rate")
    elif rate.shape or not jnp.issubdtype(rate.dtype, jnp.floating):
        raise ValueError(
            f"learning_rate is {rate.dtype} of shape {rate.shape}, must be one number"
        )
    elif not isinstance(rate, Tracer) and not 0 <= rate < math.inf:
        raise ValueError(f"learning_rate = {rate} must not be negative")
    if isinstance(schedule, type) or not callable(schedule):
        checked("schedule", schedule, AnySchedule)
    elif rate is not type(owner).learning_rate and rate != type(owner).learning_rate:
        raise ValueError(
            f"learning_rate = {shown(rate)} has no effect beside an optax schedule, "
            "which is the rate itself: leave it out"
        )


def rate_of(owner: Any, num_steps: int | jax.Array) -> optax.Schedule:
    """Returns the schedule of an optimizer with `learning_rate` and `schedule`."""
    if callable(owner.schedule):
        return owner.schedule  # pyright: ignore[reportReturnType]
    rate = jnp.asarray(owner.learning_rate, jnp.float32)
    return learning_rate_schedule(rate, owner.schedule, num_steps)


def learning_rate_schedule(
    learning_rate: jax.typing.ArrayLike,
    schedule: AnySchedule,
    num_steps: int | jax.Array,
) -> optax.Schedule:
    """Returns an optax schedule; all arguments may be traced.

    Args:
        learning_rate: `[]`, where the schedule's level is 1.
        schedule: "constant", "cosine" (to zero at `num_steps`), or phases.
        num_steps: `[]`, updates of the whole run.
    """
    learning_rate = jnp.asarray(learning_rate)
    if schedule == "constant":
        return lambda count: learning_rate
    if not isinstance(schedule, str):
        return lambda count: learning_rate * schedule.level(count, num_steps)

    def cosine(count: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.minimum(count / jnp.maximum(num_steps, 1), 1.0)
        return learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    return cosine


def _shape(phase: Phase, x: jax.Array) -> jax.Array:
    """Returns the value at a fraction x of a phase, exact at both ends."""
    # A weighted mean of two equal levels may be off by a bit.
    if phase.start == phase.end:
        return jnp.full_like(x, phase.start)
    if phase.shape == "exponential":
        inner = phase.start * (phase.end / phase.start) ** x
        inner = jnp.where(x <= 0.0, phase.start, inner)
        return jnp.where(x >= 1.0, phase.end, inner)
    way = {
        "linear": lambda: x,
        "cosine": lambda: 0.5 * (1.0 - jnp.cos(jnp.pi * x)),
        "sqrt": lambda: jnp.sqrt(x),
        "inverse_sqrt": lambda: _fall(x) / _fall(jnp.float32(1.0)),
    }[phase.shape]()
    return (1.0 - way) * phase.start + way * phase.end


def _fall(x: jax.Array) -> jax.Array:
    """1 − 1/√(1 + 10·x)."""
    return 1.0 - jax.lax.rsqrt(1.0 + 10.0 * x)


def _check(
    schedule: SchedulePhases, lengths: Sequence[str], levels: Sequence[str]
) -> None:
    for name in levels:
        value = getattr(schedule, name)
        if not 0.0 <= value <= 1.0:
            raise ValueError(
                f"{name} = {value} must lie in [0, 1]: a fraction of the learning rate"
            )
    values = {name: getattr(schedule, name) for name in lengths}
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} = {value} must not be negative")
        if schedule.unit == "fraction" and value > 1:
            raise ValueError(
                f"{name} = {value} must be at most 1, a fraction of the run; "
                "unit='steps' takes steps"
            )
        if schedule.unit == "steps" and value != int(value):
            raise ValueError(f"{name} = {value} must be a whole number of steps")
    if schedule.unit == "fraction" and sum(values.values()) > 1 + 1e-9:
        told = " + ".join(f"{name} = {value}" for name, value in values.items())
        raise ValueError(f"{told} must be at most 1 together: the whole run")
