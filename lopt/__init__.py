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
from lopt.epsilons import PAPER, WIDTH_SAFE, Epsilons
from lopt.small_fc import SmallFC

__all__ = [
    "PAPER",
    "SGD",
    "WIDTH_SAFE",
    "Adafactor",
    "Adam",
    "Artifact",
    "Epsilons",
    "LearnedOptimizer",
    "Lion",
    "Muon",
    "Prodigy",
    "ScheduleFreeAdamW",
    "SmallFC",
    "evaluation_params",
]
