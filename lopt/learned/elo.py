"""ELO: small_fc's network under a learning rate, schedule and weight decay of the user.

At test time ELO is `SmallFC` with fixed decays, whose step size is the learning rate.
It is meta-trained on inner runs blended with those of an expert. ELO-CELO2 is `Celo2`
trained that way, with the settings `ELO_CELO2`.

Unlike in the original, gradients that are not finite are not replaced by zeros.

References:
    ELO, arXiv:2607.06772.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from configuration.fields import configuration, later
from lopt import checks
from lopt.base import NumSteps, Specs, Theta, Transform
from lopt.baselines.links import add_decayed_weights, in_float32
from lopt.clipping import clip_global_norm
from lopt.learned.celo2 import Celo2
from lopt.learned.small_fc import SmallFC
from lopt.per_parameter.epsilons import PAPER, Epsilons
from lopt.per_parameter.forms import Execution
from lopt.placement import under_any_mesh
from lopt.schedules import (
    RateField,
    ScheduleField,
    WarmupCosine,
    check_rate,
    rate_of,
)
from lopt.tensors import FactoredAxes
from parametrization.rules import STANDARD, Rules


@configuration
class ELO:
    """The learned optimizer ELO."""

    learning_rate: RateField = 1e-3
    """Scale of a step; may be traced."""
    schedule: ScheduleField = "constant"
    """Learning-rate schedule: constant, cosine, one of `lopt.schedules`, or an optax
    schedule, which is the rate itself."""
    weight_decay: float = 0.0
    """Decoupled weight decay, times the learning rate but not μP's step scale."""
    clip_norm: float | None = None
    """Bound of the norm over all gradients; None does not clip."""
    hidden_size: int = 32
    """Units of each hidden layer of the network."""
    hidden_layers: int = 2
    """Hidden layers of the network."""
    exp_mult: float = 0.001
    """Scale of the learned log-magnitude of a step."""
    output_scale: float = 1.0
    """Factor on the last layer at initialization."""
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta; no decay is learned."""
    second_moment_decay: float = 0.999
    """Decay of the second moment."""
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the factored second moments, as many as momenta."""
    epsilons: Epsilons = PAPER
    """Floors inside the features."""
    rules: Rules = STANDARD
    """Parametrization that scales the steps: ADAM_LIKE (μP) or STANDARD."""
    execution: Execution = later(Execution())
    """Execution of the per-parameter network."""
    factored_axes: FactoredAxes = later("matrix", absent="tensor")
    """Axes of factored second moments: all fan-in by all fan-out ("matrix"), or the two
    largest ("tensor"; see `lopt.tensors`)."""
    NOT_STORED: ClassVar[tuple[str, ...]] = ("output_scale", "execution")
    """Fields that are no property of trained weights."""

    def __post_init__(self) -> None:
        check_rate(self)
        checks.within(self, "weight_decay", 0.0, 1e3)
        if self.clip_norm is not None:
            checks.positive(self, "clip_norm")
        _ = self.rule  # its own fields are checked there

    @property
    def rule(self) -> SmallFC:
        """The rule at learning rate 1."""
        return SmallFC(
            hidden_size=self.hidden_size,
            hidden_layers=self.hidden_layers,
            step_mult=1.0,
            exp_mult=self.exp_mult,
            output_scale=self.output_scale,
            momentum_decays=self.momentum_decays,
            second_moment_decay=self.second_moment_decay,
            factored_decays=self.factored_decays,
            epsilons=self.epsilons,
            rules=self.rules,
            execution=self.execution,
            factored_axes=self.factored_axes,
        )

    def init(self, key: jax.Array) -> Theta:
        """Draws the network's weights: `{"layer_i": {"kernel", "bias"}}`."""
        theta = self.rule.init(key)
        return {name: x for name, x in theta.items() if not name.endswith("_offsets")}

    @under_any_mesh
    def as_optax(self, theta: Theta, specs: Specs, num_steps: NumSteps) -> Transform:
        """Returns the optimizer (see `LearnedOptimizer.as_optax`)."""
        schedule = rate_of(self, num_steps)
        decays = len(self.momentum_decays)
        offsets: dict[str, Any] = {
            "momentum_offsets": jnp.zeros(decays),
            "second_moment_offsets": jnp.zeros(1),
            "factored_offsets": jnp.zeros(decays),
        }
        links = [
            clip_global_norm(self.clip_norm),
            self.rule.as_optax({**theta, **offsets}, specs, num_steps),
            # Weight decay expects a step to be subtracted.
            optax.scale(-1.0),
            *add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(schedule),
        ]
        return in_float32(optax.chain(*links))


ELO_CELO2 = Celo2(
    learning_rate=3.16e-4,
    schedule=WarmupCosine(warmup=0.0, final=0.1),
    weight_decay=0.1,
    clip_norm=1.0,
    adam_mult=20.0,
    bias_corrected=True,
)
"""Recommended settings of ELO-CELO2's weights."""
