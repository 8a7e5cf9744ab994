"""Learned optimizers and hand-designed baselines, all through optax."""

from lopt.base import LearnedOptimizer
from lopt.baselines import (
    SGD,
    Adafactor,
    Adam,
    Lion,
    Muon,
    Prodigy,
    ScheduleFreeAdamW,
    evaluation_params,
)
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
from lopt.per_parameter.epsilons import PAPER, WIDTH_SAFE, Epsilons
from lopt.release.artifact import Artifact

__all__ = [
    "ELO",
    "PAPER",
    "RNNMLP",
    "SGD",
    "WIDTH_SAFE",
    "Adafactor",
    "Adam",
    "Artifact",
    "Celo",
    "Celo2",
    "CeloAdam",
    "Epsilons",
    "LearnableAdam",
    "LearnableSGD",
    "LearnableSGDM",
    "LearnedOptimizer",
    "Lion",
    "MLPLOpt",
    "Muon",
    "NNAdam",
    "Nominal",
    "Prodigy",
    "ScheduleFreeAdamW",
    "SmallFC",
    "VeLO",
    "evaluation_params",
]
