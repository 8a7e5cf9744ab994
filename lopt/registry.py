"""Every learned optimizer by the name of its class.

A new optimizer is added to `AnyLearned`, and is then read and written by artifacts, run
directories and command lines. Dataclasses that fields of optimizers hold need no entry,
unless a field may hold one of several.
"""

from __future__ import annotations

from typing import TypeAlias, get_args

from lopt import encoding
from lopt.baselines import Baseline
from lopt.celo2 import Celo2
from lopt.elo import ELO
from lopt.learnable import LearnableAdam, LearnableSGD, LearnableSGDM
from lopt.mlp_lopt import MLPLOpt
from lopt.nn_adam import NNAdam
from lopt.nominal import Nominal
from lopt.rnn_mlp import RNNMLP
from lopt.schedules import (
    Constant,
    InfiniteSchedule,
    WarmupCosine,
    WarmupStableDecay,
)
from lopt.small_fc import SmallFC
from lopt.wrappers import (
    AccumulatedGradients,
    ClippedGradients,
    RoleFallback,
    ScheduledSteps,
    StochasticBfloat16,
    WeightDecay,
)

AnyLearned: TypeAlias = (
    SmallFC
    | MLPLOpt
    | LearnableSGD
    | LearnableSGDM
    | LearnableAdam
    | NNAdam
    | RNNMLP
    | Celo2
    | ELO
    | Nominal
    | AccumulatedGradients
    | ClippedGradients
    | ScheduledSteps
    | WeightDecay
    | RoleFallback
    | StochasticBfloat16
)
"""Every learned optimizer and wrapper, as a type for fields that hold one."""

LEARNED: tuple[type, ...] = get_args(AnyLearned)
"""The same as classes."""

COMPONENTS: tuple[type, ...] = (
    *get_args(Baseline),
    *(Constant, WarmupCosine, WarmupStableDecay, InfiniteSchedule),
)
"""Others that a field may hold where it may hold one of several."""

KINDS = encoding.kinds_of(*LEARNED, *COMPONENTS)
"""What `kind` in a stored optimizer may be."""
