"""What moves θ along the meta-gradient."""

from __future__ import annotations

import dataclasses

import optax


@dataclasses.dataclass(frozen=True)
class OuterOptimizer:
    """AdamW on θ after clipping the meta-gradient, warm-up and cosine decay.

    Clipping comes first: behind AdamW, whose updates are bounded anyway, it would not
    protect from the spikes of a PES gradient.
    """

    learning_rate: float = 3e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Outer steps of linear warm-up."""
    final_fraction: float = 1.0 / 3.0
    """Learning rate at the end, as a fraction of the peak."""
    clip_norm: float = 1.0
    """Largest global norm of the meta-gradient."""
    b1: float = 0.9
    """Decay of AdamW's momentum."""
    b2: float = 0.999
    """Decay of AdamW's second moment."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of θ."""
    averaging: float = 0.98
    """Decay of the running average of θ that is validated and released."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not 0.0 < value <= 1e6:
                raise ValueError(f"{name} = {value} must lie in (0, 1e6]")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps = {self.warmup_steps} must not be negative")
        if not 0.0 <= self.weight_decay <= 1e6:
            raise ValueError(f"weight_decay = {self.weight_decay} must lie in [0, 1e6]")
        for name in ("b1", "b2", "averaging"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1)")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ValueError(
                f"final_fraction = {self.final_fraction} must lie in [0, 1]"
            )

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `num_steps` outer steps."""
        warmup = min(self.warmup_steps, max(num_steps - 1, 0))
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=self.learning_rate / (warmup + 1),
            peak_value=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(num_steps, warmup + 1),
            end_value=self.learning_rate * self.final_fraction,
        )
        chain = optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                schedule, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay
            ),
        )
        # One vector instead of θ's many small arrays: less to compile and to launch.
        return optax.flatten(chain)
