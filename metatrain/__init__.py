"""How a learned optimizer is learned: unrolls, meta-gradients, outer optimization."""

from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.noise_reuse_es import NoiseReuseES
from metatrain.estimators.pes import PES
from metatrain.estimators.truncated_es import TruncatedES
from metatrain.expert import Expert
from metatrain.inner import InnerLoop, InnerState
from metatrain.objective import Objective
from metatrain.outer import MetaTraining, OuterState, ProblemGroup
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.resume_buffer import ResumeBuffer
from metatrain.truncation import EpisodeLengths
from metatrain.unroll import unroll

__all__ = [
    "PES",
    "Backpropagation",
    "EpisodeLengths",
    "Expert",
    "InnerLoop",
    "InnerState",
    "MetaTraining",
    "NoiseReuseES",
    "Objective",
    "OuterOptimizer",
    "OuterState",
    "ProblemGroup",
    "ResumeBuffer",
    "TruncatedES",
    "unroll",
]
