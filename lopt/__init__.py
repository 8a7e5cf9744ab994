"""What optimizes: learned optimizers and hand-designed baselines, all through optax."""

from lopt.artifact import Artifact
from lopt.base import LearnedOptimizer
from lopt.baselines import SGD, Adam
from lopt.epsilons import PAPER, WIDTH_SAFE, Epsilons
from lopt.small_fc import SmallFC

__all__ = [
    "PAPER",
    "SGD",
    "WIDTH_SAFE",
    "Adam",
    "Artifact",
    "Epsilons",
    "LearnedOptimizer",
    "SmallFC",
]
