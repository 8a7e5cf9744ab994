"""Prodigy: Adam whose learning rate is an estimated distance to the solution."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from configuration.fields import configuration
from lopt import checks
from lopt.base import Specs, map_with_specs
from lopt.baselines import base
from lopt.baselines.links import in_float32
from lopt.placement import vary
from parametrization.rules import Rules


@configuration
class Prodigy(base.RateTuned):
    """Prodigy (Mishchenko and Defazio, arXiv:2306.06101).

    θ multiplies the estimated learning rate; 1 is the method itself.

    The estimate d = Σ g·(p₀ − p) / Σ |s| runs over all tensors, so scaling the steps
    alone would leave d dependent on the width. In μP Prodigy therefore works on p / c
    with gradients c·g, c the step scale: the numerator is the same, each tensor's share
    of the denominator is Θ(1), and a step of d there is one of c·d in p. `eps` is
    compared with d·c·g, which shrinks with the width: wide networks need a small one.

    A step whose outcome is not finite is skipped, weight decay and state included: one
    infinite gradient would spoil all tensors through the estimate, and while gradients
    have all been zero the estimate is 0/0.
    """

    learning_rate: float = 1.0
    """Initial multiplier of the estimated learning rate, the whole of θ."""
    b1: float = 0.9
    """Decay of the momentum."""
    b2: float = 0.999
    """Decay of the second moment; the estimate decays by its root."""
    eps: float = 1e-8
    """Added, times the estimate, to the root of the second moment."""
    first_estimate: float = 1e-6
    """First estimate of the learning rate; it only grows."""
    weight_decay: float = 0.0
    """Decoupled weight decay: the learning rate multiplies it, μP's step scale not."""
    safeguard_warmup: bool = False
    """Whether the denominator omits the multiplier; for long warm-ups."""

    def __post_init__(self) -> None:
        base.check_normalized(self.rules, "Prodigy's")
        checks.positive(self, "learning_rate", "eps", "first_estimate")
        checks.decay(self, "b1", "b2")
        checks.not_negative(self, "weight_decay")

    def with_rate(
        self, rate: optax.Schedule, specs: Specs
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer with any multiplier as a function of the step."""
        prodigy = contrib.prodigy(
            rate,
            (self.b1, self.b2),
            eps=self.eps,
            estim_lr0=self.first_estimate,
            weight_decay=self.weight_decay,
            safeguard_warmup=self.safeguard_warmup,
        )
        return in_float32(_reparametrized(prodigy, specs, self.rules))


def _reparametrized(
    inner: optax.GradientTransformation, specs: Specs, rules: Rules
) -> optax.GradientTransformationExtraArgs:
    """Runs an optimizer on p / c, c the step scale; skips steps that are not finite."""

    def shrink(tree: Any) -> Any:
        return map_with_specs(lambda p, spec: p / rules.step_scale(spec), tree, specs)

    def grow(tree: Any) -> Any:
        return map_with_specs(lambda g, spec: g * rules.step_scale(spec), tree, specs)

    def init(params: optax.Params) -> optax.OptState:
        return vary(inner.init(shrink(params)), params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("Prodigy needs params: update(grads, state, params)")
        del extra_args
        steps, new = inner.update(grow(updates), state, shrink(params))
        outcome = jax.tree.leaves((steps, new))
        fine = jnp.stack([jnp.all(jnp.isfinite(x)) for x in outcome]).all()
        steps = jax.tree.map(lambda x: jnp.where(fine, x, 0.0), steps)
        new = jax.tree.map(lambda x, y: jnp.where(fine, x, y), new, state)
        return grow(steps), new

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore
