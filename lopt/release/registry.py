"""Every learned optimizer by the name of its class.

A new optimizer is added to `AnyLearned`, and is then read and written by artifacts, run
directories and command lines. Dataclasses that fields of optimizers hold need no entry,
unless a field may hold one of several.
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
from lopt.schedules import (
    Constant,
    InfiniteSchedule,
    WarmupCosine,
    WarmupStableDecay,
)
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
"""Every learned optimizer and wrapper, as a type for fields that hold one."""

LEARNED: tuple[type, ...] = get_args(AnyLearned)
"""The same as classes."""

COMPONENTS: tuple[type, ...] = (
    *get_args(Baseline),
    *(Constant, WarmupCosine, WarmupStableDecay, InfiniteSchedule),
)
"""Others that a field may hold where it may hold one of several."""

SGD_LIKE: tuple[type, ...] = (SGD, LearnableSGD, LearnableSGDM)
"""Those whose steps are proportional to the gradient."""

KINDS = encoding.kinds_of(*LEARNED, *COMPONENTS)
"""What `kind` in a stored optimizer may be."""


def with_rules(optimizer: Any, rules: Rules) -> Any:
    """The same optimizer, and all that it wraps, in another parametrization.

    Args:
        optimizer: of any class that is known here.
        rules: of Adam-like steps; what needs it gets the column of SGD-like ones.
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
