"""What optimizes: learned optimizers and hand-designed baselines, all through optax."""

from lopt.artifact import Artifact
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
from lopt.celo import Celo
from lopt.celo2 import Celo2
from lopt.celo_adam import CeloAdam
from lopt.elo import ELO
from lopt.epsilons import PAPER, WIDTH_SAFE, Epsilons
from lopt.learnable import LearnableAdam, LearnableSGD, LearnableSGDM
from lopt.mlp_lopt import MLPLOpt
from lopt.nn_adam import NNAdam
from lopt.nominal import Nominal
from lopt.rnn_mlp import RNNMLP
from lopt.small_fc import SmallFC
from lopt.velo import VeLO

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
