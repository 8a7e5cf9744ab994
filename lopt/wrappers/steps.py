"""Wrappers of the step: decoupled weight decay, a learning rate over the run."""

from __future__ import annotations

from typing import Any

import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import (
    LearnedOptimizer,
    NumSteps,
    Specs,
    Theta,
    Transform,
    map_with_specs,
)
from lopt.placement import under_any_mesh
from lopt.schedules import RateField, ScheduleField, check_rate, rate_of
from lopt.tensors import need
from lopt.wrappers.base import Wrapper, check_kinds
from parametrization.axes import Kind


@configuration
class WeightDecay(Wrapper):
    """Decoupled weight decay: every step also subtracts `weight_decay`·p.

    Neither the wrapped optimizer's learning rate nor μP's step scale multiplies it, so
    its strength does not depend on the width. With `ScheduledSteps` around it,
    p ← p − rate·(step + weight_decay·p).
    """

    inner: LearnedOptimizer
    """The wrapped optimizer."""
    weight_decay: float = 1e-4
    """Share of a parameter that is subtracted in each step."""
    kinds: tuple[Kind, ...] = ("input", "hidden", "output", "fixed")
    """Roles that decay; by default matrices, not biases, gains or scalars."""

    def __post_init__(self) -> None:
        checks.not_negative(self, "weight_decay")
        check_kinds(self.kinds)

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""

        def decay(updates: optax.Updates, params: optax.Params | None) -> Any:
            params = need(params, "WeightDecay")
            return map_with_specs(one, updates, specs, params)

        def one(step: Any, spec: Any, param: Any) -> Any:
            if spec.kind not in self.kinds:
                return step
            return (step - self.weight_decay * param).astype(step.dtype)

        inner = self.inner.as_optax(theta, specs, num_steps)
        return optax.chain(inner, optax.stateless(decay))


@configuration
class ScheduledSteps(Wrapper):
    """Multiplies the steps of an optimizer by a learning rate over the run.

    The wrapped optimizer does not see the factor. It would spoil the averages of a
    schedule-free optimizer: give that one its own schedule.
    """

    inner: LearnedOptimizer
    """The wrapped optimizer."""
    learning_rate: RateField = 1.0
    """Factor on the steps where the schedule's level is 1; may be traced."""
    schedule: ScheduleField = "constant"
    """constant, cosine to zero at the end of the run, phases of `lopt.schedules`, or a
    schedule of optax, which is the factor itself."""

    def __post_init__(self) -> None:
        check_rate(self)

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        rate = rate_of(self, num_steps)
        inner = self.inner.as_optax(theta, specs, num_steps)
        return optax.chain(inner, optax.scale_by_schedule(rate))
