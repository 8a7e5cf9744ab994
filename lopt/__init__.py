"""What optimizes: learned optimizers and hand-designed baselines, all through optax."""


from lopt.base import LearnedOptimizer

from lopt.epsilons import PAPER, WIDTH_SAFE, Epsilons
from lopt.small_fc import SmallFC

__all__ = [
    "PAPER",
    "WIDTH_SAFE",
    
    
    "Epsilons",
    "LearnedOptimizer",
    "SmallFC",
]
