"""Learned optimizers that a command line can name: `--lopt NAME`.

The name puts a learned optimizer into a preset of `experiments.train`, in μP;
`--lopt.FIELD VALUE` then changes its fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from experiments.command_line import InputError, take_name
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
from lopt.release.registry import AnyLearned
from parametrization.rules import ADAM_LIKE, SGD_LIKE


@dataclasses.dataclass(frozen=True)
class NamedOptimizer:
    """A learned optimizer, built on demand."""

    description: str
    """One line for a list."""
    make: Callable[[], AnyLearned]
    """Returns the optimizer."""


OPTIMIZERS: dict[str, NamedOptimizer] = {
    "small_fc": NamedOptimizer(
        "a small network on Adafactor-style features; in μP it is μLO",
        lambda: SmallFC(hidden_size=32, step_mult=0.01, rules=ADAM_LIKE),
    ),
    "mlp_lopt": NamedOptimizer(
        "a small network on gradient, parameter and six momenta",
        lambda: MLPLOpt(step_mult=0.01, rules=ADAM_LIKE),
    ),
    "learnable_sgd": NamedOptimizer(
        "gradient descent with a learned rate",
        lambda: LearnableSGD(rules=SGD_LIKE),
    ),
    "learnable_sgdm": NamedOptimizer(
        "momentum with a learned rate and decay",
        lambda: LearnableSGDM(rules=SGD_LIKE),
    ),
    "learnable_adam": NamedOptimizer(
        "Adam with four learned scalars",
        lambda: LearnableAdam(rules=ADAM_LIKE),
    ),
    "nn_adam": NamedOptimizer(
        "Adam with hyperparameters moved by an LSTM of each tensor",
        lambda: NNAdam(rules=ADAM_LIKE),
    ),
    "rnn_mlp": NamedOptimizer(
        "a small network for each parameter, guided by an LSTM of each tensor",
        lambda: RNNMLP(rules=ADAM_LIKE),
    ),
    "velo": NamedOptimizer(
        "VeLO's architecture in μP, small: LSTM 64, bank of 16",
        lambda: VeLO(
            lstm_hidden_size=64, param_inits=16, param_scale_mult=False, rules=ADAM_LIKE
        ),
    ),
    "celo": NamedOptimizer(
        "Celo in μP: a learned rule and a learned scheduler",
        lambda: Celo(param_scale_mult=False, rules=ADAM_LIKE),
    ),
    "celo_adam": NamedOptimizer(
        "Adam with Celo's learned scheduler",
        lambda: CeloAdam(rules=ADAM_LIKE),
    ),
    "celo2": NamedOptimizer(
        "CELO2: a learned, orthogonalized direction for matrices",
        lambda: Celo2(rules=ADAM_LIKE),
    ),
    "celo2_base": NamedOptimizer(
        "CELO2 without orthogonalization",
        lambda: Celo2(orthogonalize=False, rules=ADAM_LIKE),
    ),
    "elo": NamedOptimizer(
        "ELO: small_fc's network under the user's learning rate",
        lambda: ELO(rules=ADAM_LIKE),
    ),
    "nominal": NamedOptimizer(
        "small_fc combined with an Adam-like step",
        lambda: Nominal(OPTIMIZERS["small_fc"].make(), rules=ADAM_LIKE),
    ),
}


def named(name: str) -> AnyLearned:
    """Returns a learned optimizer by its name, or raises `InputError`."""
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise InputError(f"unknown optimizer --lopt {name!r}: known are {known}")
    return OPTIMIZERS[name].make()


def take_optimizer(arguments: Sequence[str]) -> tuple[AnyLearned | None, list[str]]:
    """Takes `--lopt NAME` out of a command line: the optimizer, and the rest."""
    name, rest = take_name(arguments, "--lopt", "optimizer", OPTIMIZERS)
    return None if name is None else OPTIMIZERS[name].make(), rest
