"""Registry of optimizers by the names of their classes.

Artifacts, run directories and command lines know the optimizers in `AnyLearned`.
Dataclasses in fields of optimizers need no entry, unless a field holds one of several.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias, get_args

from configuration import encoding
from lopt.baselines import SGD, Baseline
from lopt.learned.celo import Celo
from lopt.learned.celo2 import Celo2
from lopt.learned.celo_adam import CeloAdam
from lopt.learned.elo import ELO
from lopt.learned.learnable import LearnableAdam, LearnableSGD, LearnableSGDM
from lopt.learned.mlp_lopt import MLPLOpt
from lopt.learned.nn_adam import NNAdam
from lopt.learned.nominal import Nominal
from lopt.learned.rnn_mlp import RNNMLP
from lopt.learned.small_fc import SmallFC
from lopt.learned.velo import VeLO
from lopt.schedules import AnySchedule
from lopt.wrappers import (
    AccumulatedGradients,
    Bfloat16Features,
    ClippedGradients,
    RoleFallback,
    ScheduledSteps,
    StochasticBfloat16,
    WeightDecay,
)
from parametrization.rules import Rules

AnyLearned: TypeAlias = (
    SmallFC
    | MLPLOpt
    | LearnableSGD
    | LearnableSGDM
    | LearnableAdam
    | NNAdam
    | RNNMLP
    | VeLO
    | Celo
    | CeloAdam
    | Celo2
    | ELO
    | Nominal
    | AccumulatedGradients
    | ClippedGradients
    | ScheduledSteps
    | WeightDecay
    | RoleFallback
    | StochasticBfloat16
    | Bfloat16Features
)
"""Type of a field that holds any learned optimizer or wrapper."""

LEARNED: tuple[type, ...] = get_args(AnyLearned)
"""The classes in `AnyLearned`."""

# The first alternative of a schedule is a mere name.
COMPONENTS: tuple[type, ...] = (*get_args(Baseline), *get_args(AnySchedule)[1:])
"""Other classes among which a field may choose."""

SGD_LIKE: tuple[type, ...] = (SGD, LearnableSGD, LearnableSGDM)
"""Optimizers whose steps are proportional to the gradient."""

KINDS = encoding.kinds_of(*LEARNED, *COMPONENTS)
"""Values of `kind` in a stored optimizer."""


def with_rules(optimizer: Any, rules: Rules) -> Any:
    """Returns the optimizer, and all that it wraps, in another parametrization.

    Args:
        optimizer: of a registered class.
        rules: column of Adam-like steps; SGD-like optimizers get their own column.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(optimizer):
        value = getattr(optimizer, field.name)
        if isinstance(value, (*LEARNED, *get_args(Baseline))):
            changes[field.name] = with_rules(value, rules)
        elif field.name == "rules":
            sgd_like = isinstance(optimizer, SGD_LIKE)
            changes[field.name] = rules.for_sgd if sgd_like else rules
    return dataclasses.replace(optimizer, **changes)


def as_trained(optimizer: Any) -> Any:
    """Returns the optimizer, and all that it wraps, as trained weights determine it.

    Fields in `NOT_STORED` of its class are at their defaults: they say how weights are
    drawn or computed with, so optimizers that differ in nothing else are the same.
    """
    unstored = getattr(optimizer, "NOT_STORED", ())
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(optimizer):
        value = getattr(optimizer, field.name)
        if field.name in unstored:
            changes[field.name] = field.default
        elif isinstance(value, LEARNED):
            changes[field.name] = as_trained(value)
    return dataclasses.replace(optimizer, **changes)
