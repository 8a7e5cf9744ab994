"""Another optimizer for parameters of chosen roles."""

from __future__ import annotations

from typing import Any

import jax
import optax

from configuration.fields import configuration
from lopt.base import (
    LearnedOptimizer,
    NumSteps,
    Specs,
    Theta,
    Transform,
    map_with_specs,
)
from lopt.baselines.adam import Adam
from lopt.placement import under_any_mesh
from lopt.wrappers.base import Wrapper, check_kinds
from parametrization.axes import Kind


@configuration
class RoleFallback(Wrapper):
    """Gives tensors of some roles to another optimizer, such as AdamW.

    Roles are those of the specs. Each of the two sees its own tensors only, as in
    `optax.multi_transform`. θ is the wrapped optimizer's; the fallback runs with the θ
    that its fields describe.
    """

    inner: LearnedOptimizer
    """Optimizer of all other roles."""
    fallback: LearnedOptimizer = Adam()
    """Optimizer of the chosen roles."""
    kinds: tuple[Kind, ...] = ("input", "vector", "scalar")
    """The chosen roles; by default vectors, scalars and embeddings."""

    def __post_init__(self) -> None:
        check_kinds(self.kinds)

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""

        def labels(params: Any) -> Any:
            return map_with_specs(
                lambda _, spec: "fallback" if spec.kind in self.kinds else "inner",
                params,
                specs,
            )

        fallback_theta = self.fallback.init(jax.random.key(0))
        return optax.partition(
            {
                "inner": self.inner.as_optax(theta, specs, num_steps),
                "fallback": self.fallback.as_optax(fallback_theta, specs, num_steps),
            },
            labels,
        )
