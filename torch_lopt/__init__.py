"""Learned optimizers as `torch.optim` optimizers.

One class, `LearnedOptimizer`, runs a meta-trained update rule from an artifact folder
(`config.json`, `model.safetensors`, `SHA256SUMS`). Imports torch, never jax.
"""

from torch_lopt.artifact import load_artifact
from torch_lopt.optimizer import LearnedOptimizer
from torch_lopt.rule import Epsilons, SmallFC
from torch_lopt.wrappers import ScheduledSteps, WeightDecay

__all__ = [
    "Epsilons",
    "LearnedOptimizer",
    "ScheduledSteps",
    "SmallFC",
    "WeightDecay",
    "load_artifact",
]
