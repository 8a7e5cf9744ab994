"""Wrappers of a rule: weight decay, and a learning rate over the run.

A wrapper is data: it says what becomes of the two factors with which a rule moves a
parameter. Wrappers nest in any order, around one rule of `torch_lopt.rule`.
"""

import dataclasses
import numbers
from typing import NamedTuple, TypeAlias

from torch_lopt import schedules
from torch_lopt.rule import SmallFC
from torch_lopt.schedules import Schedule, single

DECAYING = ("input", "hidden", "output", "fixed")
"""Roles that decay, in the words of the JAX library: all that have a fan-in."""


class Factors(NamedTuple):
    """Factors of the step s·u and of a matrix p: p moves by -(step·s·u + decay·p)."""

    step: float = 1.0
    decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class WeightDecay:
    """Decoupled weight decay of matrices: each step also subtracts weight_decay·p.

    Attributes:
        inner: the wrapped rule.
        weight_decay: share of a matrix that is subtracted. The step scale of μP does
            not multiply it; wrappers around this one do.
    """

    inner: "Rule"
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        check_inner(self)
        if not 0.0 <= self.weight_decay <= 1e38:
            raise ValueError(
                f"weight_decay must be in [0, 1e38], is {self.weight_decay}"
            )

    @property
    def needs_num_steps(self) -> bool:
        """Whether this wrapper depends on the length of the run."""
        return False

    def wrap(self, inner: Factors, step: int, num_steps: int) -> Factors:
        """Returns the factors of the wrapped rule as this wrapper changes them."""
        del step, num_steps
        return inner._replace(decay=inner.decay + self.weight_decay)


@dataclasses.dataclass(frozen=True)
class ScheduledSteps:
    """Multiplies the steps of a rule by a learning rate over the run.

    Attributes:
        inner: the wrapped rule, which does not see the factor.
        learning_rate: the factor where the schedule's level is 1.
        schedule: `"constant"`, `"cosine"`, or phases of `torch_lopt.schedules`.
    """

    inner: "Rule"
    learning_rate: float = 1.0
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        check_inner(self)
        if not 0.0 < self.learning_rate <= 1e38:
            raise ValueError(
                f"learning_rate must be in (0, 1e38], is {self.learning_rate}"
            )
        schedules.check_schedule(self.schedule)

    @property
    def needs_num_steps(self) -> bool:
        """Whether this wrapper depends on the length of the run."""
        return schedules.needs_num_steps(self.schedule)

    def rate(self, step: int, num_steps: int) -> float:
        """Returns the learning rate at a step, a number of float32 as in JAX.

        Args:
            step: updates done before this one.
            num_steps: updates of the whole run.
        """
        level = schedules.level(self.schedule, step, num_steps)
        return single(single(self.learning_rate) * single(level))

    def wrap(self, inner: Factors, step: int, num_steps: int) -> Factors:
        """Returns the factors of the wrapped rule as this wrapper changes them."""
        rate = self.rate(step, num_steps)
        return Factors(rate * inner.step, rate * inner.decay)


Wrapper: TypeAlias = WeightDecay | ScheduledSteps
Rule: TypeAlias = SmallFC | WeightDecay | ScheduledSteps


def check_inner(wrapper: Wrapper) -> None:
    """Refuses to wrap what is no rule."""
    inner = wrapper.inner
    if not isinstance(inner, SmallFC | WeightDecay | ScheduledSteps):
        raise ValueError(
            f"{type(wrapper).__name__} wraps a SmallFC, alone or wrapped, not "
            f"{inner!r:.80}"
        )


def unwrapped(rule: Rule) -> tuple[SmallFC, tuple[Wrapper, ...]]:
    """Returns the innermost rule, and its wrappers from the inside out."""
    wrappers: list[Wrapper] = []
    while not isinstance(rule, SmallFC):
        wrappers.append(rule)
        rule = rule.inner
    return rule, tuple(reversed(wrappers))


def with_innermost(rule: Rule, innermost: SmallFC) -> Rule:
    """Returns the wrappers of a rule around another one."""
    _, wrappers = unwrapped(rule)
    rule = innermost
    for wrapper in wrappers:
        rule = dataclasses.replace(wrapper, inner=rule)
    return rule


def factors(wrappers: tuple[Wrapper, ...], step: int, num_steps: int) -> Factors:
    """Returns the factors that all wrappers make together.

    Args:
        wrappers: from the inside out.
        step: updates done before this one.
        num_steps: updates of the whole run; any number if no wrapper needs it.
    """
    both = Factors()
    for wrapper in wrappers:
        both = wrapper.wrap(both, step, num_steps)
    return both


def length_of_run(num_steps: int | None, wrappers: tuple[Wrapper, ...]) -> int | None:
    """Returns the length of the run, None if no wrapper depends on it.

    Args:
        num_steps: the length as the user gave it, or None.
        wrappers: from the inside out.

    Raises:
        ValueError: if it is no whole number above 0, or is missing and needed.
    """
    if num_steps is not None:
        whole = isinstance(num_steps, numbers.Integral)
        if isinstance(num_steps, bool) or not whole or num_steps < 1:
            raise ValueError(
                f"num_steps must be a whole number >= 1, is {num_steps!r:.80}"
            )
    if not any(wrapper.needs_num_steps for wrapper in wrappers):
        return None
    if num_steps is None:
        raise ValueError(
            "this rule's schedule depends on the length of the run: give num_steps= "
            "the number of its updates"
        )
    return int(num_steps)
