"""Base class of all wrappers."""

from __future__ import annotations

from collections.abc import Collection

import jax

from lopt.base import (
    LearnedOptimizer,
    NumSteps,
    Specs,
    Theta,
    Transform,
    frozen_parts,
    learned_decays,
)
from parametrization.axes import KINDS, Kind
from parametrization.rules import Rules


class Wrapper:
    """An optimizer with θ and parametrization of the wrapped one."""

    inner: LearnedOptimizer

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parts of θ that meta-training freezes (see `Celo.frozen`)."""
        return frozen_parts(self.inner)

    def init(self, key: jax.Array) -> Theta:
        """Returns θ of the wrapped optimizer."""
        return self.inner.init(key)

    def learned_decays(self, theta: Theta) -> dict[str, jax.Array]:
        """Returns those of the wrapped optimizer."""
        return learned_decays(self.inner, theta)

    @property
    def rules(self) -> Rules:
        """Parametrization of the wrapped optimizer."""
        return self.inner.rules  # pyright: ignore[reportAttributeAccessIssue]

    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        raise NotImplementedError


def innermost(optimizer: LearnedOptimizer) -> LearnedOptimizer:
    """Returns what an optimizer's wrappers wrap; it has the same θ."""
    return innermost(optimizer.inner) if isinstance(optimizer, Wrapper) else optimizer


def check_kinds(kinds: Collection[Kind]) -> None:
    """Refuses an empty choice of roles."""
    if not kinds:
        raise ValueError(f"kinds = {kinds!r} must be some of {KINDS}")
