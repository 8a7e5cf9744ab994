"""The optimizer of θ.

The chain is: the mean over groups, an optional mean over several outer steps, clipping,
a rule of optax, decoupled weight decay, the learning rate. Clipping comes first: after
a normalizing rule, whose updates are bounded, it would not protect the rule's state
from the spikes of a PES gradient. For any other chain, subclass and override `build`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import optax

from configuration.fields import configuration
from configuration.ranges import check_range

GroupGradients = Literal["plain", "normalized"]
PLAIN = "sgd"
"""Name of the rule that leaves the gradient as it is."""

# The chain has a learning rate of its own; line searches and polyak need the loss.
_EXCLUDED = {
    "learning_rate",
    "schedule",
    "backtracking_linesearch",
    "zoom_linesearch",
    "polyak",
}


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
    """Largest absolute value of an element, before the norm is clipped (VeLO: 3)."""
    rule: str = "adam"
    """The rule: sgd, or NAME of one of optax's scale_by_NAME (adam, lion, adan, …)."""
    settings: tuple[tuple[str, float], ...] = ()
    """More hyperparameters of the rule, by their names in optax."""
    b1: float = 0.9
    """Decay of the rule's momentum, if it has one."""
    b2: float = 0.999
    """Decay of the rule's second moment, if it has one."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of θ."""
    averaging: float = 0.98
    """Decay of the running average of θ that is validated and released."""
    accumulate: int = 1
    """Outer steps whose meta-gradients are averaged for one move of θ; should divide
    the number of outer steps, since the rest after the last move is lost."""
    group_gradients: GroupGradients = "plain"
    """normalized: each group's meta-gradient is scaled to norm 1 before the mean, so
    that no group dominates by the size of its losses."""
    frozen: tuple[str, ...] = ()
    """Parts of θ, such as rule or rule/layer_0, that are neither perturbed nor moved,
    besides those that the optimizer freezes (see `Celo.frozen`)."""
    max_skipped: int = 20
    """Consecutive outer steps with a non-finite update after which a run ends."""

    def __post_init__(self) -> None:
        for interval, names in (
            ("(0, 1e6]", ("learning_rate", "clip_norm", "clip_value")),
            ("[0, 1e6]", ("weight_decay",)),
            ("[0, 1]", ("final_fraction",)),
            ("[0, 1)", ("b1", "b2", "averaging")),
            ("[0, 1e9]", ("warmup_steps",)),
            ("[1, 1e9]", ("accumulate", "max_skipped")),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None:
                    check_range(name, value, interval)
        self._rule()

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """Builds the chain for `num_steps` moves of θ, without the accumulation."""
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
        # One vector compiles and launches faster than θ's many small arrays.
        return optax.flatten(chain)

    def accumulated(self, num_steps: int) -> optax.GradientTransformation:
        """Builds the chain for `num_steps` outer steps; between moves updates are 0."""
        moves = -(-num_steps // self.accumulate)
        if self.accumulate == 1:
            return self.build(moves)
        every = optax.MultiSteps(self.build(moves), every_k_schedule=self.accumulate)
        return every.gradient_transformation()

    def _rule(self) -> optax.GradientTransformation:
        """Makes the rule by its name; a `ValueError` names the wrong field."""
        known = {n[9:] for n in dir(optax) if n.startswith("scale_by_")} - _EXCLUDED
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
