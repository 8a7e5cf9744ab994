"""How a learned optimizer is learned: unrolls, meta-gradients, outer optimization."""

from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.es import EvolutionStrategy
from metatrain.expert import Expert
from metatrain.inner import InnerState
from metatrain.objective import Objective
from metatrain.outer import MetaTraining, OuterState, ProblemGroup
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.resume_buffer import ResumeBuffer
from metatrain.truncation import EpisodeLengths
from metatrain.unroll import unroll

__all__ = [
    "Backpropagation",
    "EpisodeLengths",
    "EvolutionStrategy",
    "Expert",
    "InnerState",
    "MetaTraining",
    "Objective",
    "OuterOptimizer",
    "OuterState",
    "ProblemGroup",
    "ResumeBuffer",
    "unroll",
]
