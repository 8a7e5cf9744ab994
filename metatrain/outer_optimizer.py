"""What moves θ along the meta-gradient.

The chain is: the mean over groups, an optional mean over several outer steps, clipping,
a rule of optax, decoupled weight decay, the learning rate. Clipping comes first: behind
a normalizing rule, whose updates are bounded anyway, it would not protect from the
spikes of a PES gradient. For any other chain, subclass and override `build`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import optax

from configuration.fields import configuration

GroupGradients = Literal["plain", "normalized"]
PLAIN = "sgd"
"""Name of the rule that leaves the gradient as it is."""


_NO_RULES = frozenset(
    (
        *("learning_rate", "schedule"),  # the chain has its own; signs would turn
        *("backtracking_linesearch", "zoom_linesearch", "polyak"),  # need the loss
    )
)
"""Of optax's scale_by_NAME, those that no meta-gradient alone can drive."""


@configuration
class OuterOptimizer:
    """AdamW on θ, or another rule of optax, with warm-up and cosine decay."""

    learning_rate: float = 3e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Outer steps of linear warm-up."""
    final_fraction: float = 1.0 / 3.0
    """Learning rate at the end, as a fraction of the peak."""
    clip_norm: float = 1.0
    """Largest global norm of the meta-gradient."""
    clip_value: float | None = None
    """Largest size of a single element, before the norm is clipped (VeLO: 3)."""
    rule: str = "adam"
    """The rule: sgd, or NAME of one of optax's scale_by_NAME (adam, lion, adan, …)."""
    settings: tuple[tuple[str, float], ...] = ()
    """More hyperparameters of the rule, as its function in optax calls them."""
    b1: float = 0.9
    """Decay of the rule's momentum, if it has one."""
    b2: float = 0.999
    """Decay of the rule's second moment, if it has one."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of θ."""
    averaging: float = 0.98
    """Decay of the running average of θ that is validated and released."""
    accumulate: int = 1
    """Outer steps whose meta-gradients are averaged for one move of θ. Give a divisor
    of all outer steps: what is left behind the last move moves nothing."""
    group_gradients: GroupGradients = "plain"
    """normalized: each group's meta-gradient has norm 1 in the mean over groups, so
    that no group outvotes the others by the size of its losses."""
    frozen: tuple[str, ...] = ()
    """Parts of θ, such as rule or rule/layer_0, that are neither perturbed nor moved;
    an optimizer may have some of its own (see `Celo.frozen`)."""
    max_skipped: int = 20
    """Outer steps in a row whose update is not finite, after which a run ends."""

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("b1", "b2", "averaging"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1)")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ValueError(
                f"final_fraction = {self.final_fraction} must lie in [0, 1]"
            )
        self._rule()

    def _check_numbers(self) -> None:
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not 0.0 < value <= 1e6:
                raise ValueError(f"{name} = {value} must lie in (0, 1e6]")
        if self.clip_value is not None and not 0.0 < self.clip_value <= 1e6:
            raise ValueError(f"clip_value = {self.clip_value} must lie in (0, 1e6]")
        if not 0 <= self.warmup_steps <= 10**9:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} must not be negative, at most 10⁹"
            )
        if not 0.0 <= self.weight_decay <= 1e6:
            raise ValueError(f"weight_decay = {self.weight_decay} must lie in [0, 1e6]")
        for name in ("accumulate", "max_skipped"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} = {value} must be a positive whole number")
            if value > 10**9:
                raise ValueError(f"{name} = {value} must be at most 10⁹")

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """The chain for a run of `num_steps` moves of θ, without the accumulation."""
        warmup = min(self.warmup_steps, max(num_steps - 1, 0))
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=self.learning_rate / (warmup + 1),
            peak_value=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(num_steps, warmup + 1),
            end_value=self.learning_rate * self.final_fraction,
        )
        clips = [optax.clip_by_global_norm(self.clip_norm)]
        if self.clip_value is not None:
            clips.insert(0, optax.clip(self.clip_value))
        chain = optax.chain(
            *clips,
            self._rule(),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
        # One vector instead of θ's many small arrays: less to compile and to launch.
        return optax.flatten(chain)

    def accumulated(self, num_steps: int) -> optax.GradientTransformation:
        """The chain for a run of `num_steps` outer steps, `accumulate` of them a move.

        Between two moves its updates are zero.
        """
        moves = -(-num_steps // self.accumulate)
        if self.accumulate == 1:
            return self.build(moves)
        every = optax.MultiSteps(self.build(moves), every_k_schedule=self.accumulate)
        return every.gradient_transformation()

    def _rule(self) -> optax.GradientTransformation:
        """The rule by its name; a `ValueError` names the field that is wrong."""
        known = {n[9:] for n in dir(optax) if n.startswith("scale_by_")} - _NO_RULES
        if self.rule != PLAIN and self.rule not in known:
            names = ", ".join(sorted(known))
            raise ValueError(f"rule = {self.rule!r} must be {PLAIN} or one of {names}")
        make: Callable[..., Any] = optax.identity
        if self.rule != PLAIN:
            make = getattr(optax, f"scale_by_{self.rule}")
        known = inspect.signature(make).parameters
        settings = {name: getattr(self, name) for name in ("b1", "b2") if name in known}
        for name, value in self.settings:
            if name not in known or name in settings:
                own = sorted(known.keys() - settings.keys())
                raise ValueError(
                    f"settings: {self.rule} takes no {name!r}; it takes "
                    f"{', '.join(own) or 'none'}"
                )
            if not math.isfinite(value):
                raise ValueError(f"settings: {name} = {value} must be finite")
            settings[name] = value
        try:
            return make(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"rule = {self.rule!r} cannot be made of numbers alone ({error}); "
                "subclass OuterOptimizer and override build"
            ) from None
