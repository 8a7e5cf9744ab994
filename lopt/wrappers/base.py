"""What all wrappers share."""

from __future__ import annotations

from collections.abc import Collection

import jax
import optax

from lopt.base import LearnedOptimizer, Specs, Theta, frozen_parts, learned_decays
from parametrization.axes import KINDS, Kind
from parametrization.rules import Rules


class Wrapper:
    """θ and parametrization are those of the wrapped optimizer."""

    inner: LearnedOptimizer

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parts of θ that meta-training leaves alone (see `Celo.frozen`)."""
        return frozen_parts(self.inner)

    def init(self, key: jax.Array) -> Theta:
        """θ of the wrapped optimizer."""
        return self.inner.init(key)

    def learned_decays(self, theta: Theta) -> dict[str, jax.Array]:
        """Those of the wrapped optimizer."""
        return learned_decays(self.inner, theta)

    @property
    def rules(self) -> Rules:
        """Parametrization of the wrapped optimizer."""
        rules: Rules = getattr(self.inner, "rules")  # noqa: B009
        return rules

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer (see `LearnedOptimizer.as_optax`)."""
        raise NotImplementedError


def check_kinds(kinds: Collection[Kind]) -> None:
    """Refuses to concern no role at all."""
    if not kinds:
        raise ValueError(f"kinds = {kinds!r} must be some of {KINDS}")
