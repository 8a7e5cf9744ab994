"""A nominal step beside a learned one, for stability before the rule has learned.

The wrapped rule's step is added to a hand-designed one, Adam-like by default. The rule
may be preconditioned by the same second moment, and bounded relative to the nominal
step size. θ also holds the logarithm of a factor on each of the two steps.

STAR's third part, weight decay on θ, is a field of the outer optimizer.

References:
    Harrison et al., A closer look at learned optimization: stability, robustness, and
    inductive biases (STAR), arXiv:2209.11208; the estimators are those of
    `MLPNomLOpt` in google/learned_optimization.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration
from lopt import checks
from lopt.base import (
    LearnedOptimizer,
    NumSteps,
    Specs,
    Theta,
    Transform,
    bare,
    is_masked,
    learned_decays,
    map_with_specs,
)
from lopt.per_parameter import accumulators
from lopt.per_parameter.accumulators import Complements, TensorState, fixed, present
from lopt.per_parameter.epsilons import PAPER
from lopt.placement import Blank, axis_names, under_any_mesh
from lopt.tensors import accumulator_dtype, need
from parametrization.rules import STANDARD, Rules
from parametrization.spec import ParamSpec

Estimator = Literal["gradient", "momentum", "momenta", "adam", "adam_momenta"]


class NominalState(NamedTuple):
    """State of the transformation."""

    rule: optax.OptState
    tensors: Any  # tree of TensorState, parallel to the parameters


@configuration
class Nominal:
    """A learned optimizer with a nominal term; wraps any other."""

    inner: LearnedOptimizer
    """The wrapped optimizer, the rule."""
    step_size: float = 1e-3
    """Scale of the nominal step."""
    estimator: Estimator = "adam_momenta"
    """Nominal direction: the gradient, the slowest momentum, the mean of all momenta,
    or (adam) one of the momenta over the root of the second moment."""
    precondition: bool = False
    """Whether the rule's step is divided by the root of the second moment."""
    max_ratio: float | None = None
    """Bound of the rule's step per element, in nominal step sizes; None: no bound."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the parameters, in nominal step sizes."""
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta."""
    second_moment_decay: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-6
    """Added to the second moment before its reciprocal root."""
    rules: Rules = STANDARD
    """Parametrization that scales the nominal step; the rule has its own."""

    def __post_init__(self) -> None:
        checks.positive(self, "step_size", "eps")
        checks.within(self, "weight_decay", 0.0, 1e3)
        checks.decays(self, "momentum_decays", "second_moment_decay")
        checks.step_rules(self.rules)
        if self.max_ratio is not None:
            checks.positive(self, "max_ratio")
        theirs = getattr(self.inner, "rules", self.rules)
        if theirs is not self.rules:
            raise ValueError(
                f"rules = {self.rules!r} must be those of the wrapped rule, {theirs!r}"
            )

    def init(self, key: jax.Array) -> Theta:
        """Returns `{"inner": θ of the rule, "log_rule": [], "log_nominal": []}`."""
        factors = {name: jnp.zeros([]) for name in ("log_rule", "log_nominal")}
        return {"inner": self.inner.init(key), **factors}

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        rule = self.inner.as_optax(theta["inner"], specs, num_steps)

        def init(params: optax.Params) -> NominalState:
            decays = len(self.momentum_decays)

            def empty(param: jax.Array) -> TensorState:
                like = Blank(
                    param, param.shape, accumulator_dtype(param), axis_names(param)
                )
                return accumulators.init(like, decays, num_factored=0)

            return NominalState(rule.init(params), jax.tree.map(empty, bare(params)))

        def update(
            updates: optax.Updates,
            state: NominalState,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, NominalState]:
            params = need(params, "Nominal")
            steps, inner = rule.update(updates, state.rule, params, **extra_args)

            def average(grad: Any, tensor: Any) -> Any:
                return tensor if is_masked(grad) else self._accumulate(tensor, grad)

            def total(grad: Any, spec: ParamSpec, *rest: Any) -> Any:
                return self._sum(theta, spec, grad, *rest)

            new = jax.tree.map(average, updates, state.tensors, is_leaf=is_masked)
            sums = map_with_specs(total, updates, specs, steps, params, new)
            return sums, NominalState(inner, new)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore

    def learned_decays(self, theta: Theta) -> dict[str, jax.Array]:
        """Returns those of the wrapped rule."""
        return learned_decays(self.inner, theta["inner"])

    def _accumulate(self, state: TensorState, grad: jax.Array) -> TensorState:
        dtype = state.momentum.dtype
        weights = Complements(
            fixed(self.momentum_decays, dtype),
            fixed((self.second_moment_decay,), dtype),
        )
        return accumulators.update(state, grad.astype(dtype), weights, PAPER)

    def _sum(
        self,
        theta: Theta,
        spec: ParamSpec,
        grad: jax.Array,
        step: jax.Array,
        param: jax.Array,
        state: TensorState,
    ) -> jax.Array:
        """Returns the step of one parameter, in its dtype."""
        momenta = state.momentum
        second_moment = present(state.second_moment, "second moment")[0]
        root = jax.lax.rsqrt(second_moment + self.eps)
        slowest = max(range(len(momenta)), key=self.momentum_decays.__getitem__)
        direction = {
            "gradient": lambda: grad.astype(root.dtype),
            "momentum": lambda: momenta[slowest],
            "momenta": lambda: momenta.mean(0),
            "adam": lambda: momenta[slowest] * root,
            "adam_momenta": lambda: momenta.mean(0) * root,
        }[self.estimator]()
        unit = self.step_size * self.rules.step_scale(spec)
        nominal = unit * jnp.exp(theta["log_nominal"]) * direction
        learned = step.astype(root.dtype) * jnp.exp(theta["log_rule"])
        if self.precondition:
            learned = learned * root
        if self.max_ratio is not None:
            bound = self.max_ratio * unit
            learned = jnp.clip(learned, -bound, bound)
        decayed = self.step_size * self.weight_decay * param
        return (learned - nominal - decayed).astype(step.dtype)
