"""The experts that a command line can name: `--expert NAME`.

The name gives a preset of `experiments.train` an expert, in μP, with full weights for a
twentieth of the outer steps and falling ones up to half of them (5,000 and 50,000 of
ELO's 100,000). `--expert.FIELD VALUE` and `--expert.optimizer.FIELD VALUE` change it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from experiments.command_line import take_name
from experiments.presets.configs import Presets, TrainConfig
from lopt.baselines import SGD, Adam, Baseline, Muon
from metatrain.expert import Expert
from parametrization.rules import ADAM_LIKE, SGD_LIKE

EXPERTS: dict[str, Baseline] = {
    "adamw": Adam(1e-3, "cosine", weight_decay=1e-2, rules=ADAM_LIKE),
    "sgdm": SGD(1e-1, "cosine", momentum=0.9, rules=SGD_LIKE),
    "muon": Muon(2e-2, "cosine", adam_ratio=0.05, weight_decay=1e-2, rules=ADAM_LIKE),
}
"""Experts by name; learning rates are common ones, not tuned."""


def take_expert(arguments: Sequence[str]) -> tuple[Baseline | None, list[str]]:
    """Takes `--expert NAME` out of a command line, and returns the rest too.

    Raises:
        InputError: if the name is missing or unknown.
    """
    name, rest = take_name(arguments, "--expert", "expert", EXPERTS)
    return None if name is None else EXPERTS[name], rest


def with_expert(presets: Presets, optimizer: Baseline) -> Presets:
    """Returns the presets with an expert for the first half of the run."""

    def make(name: str) -> TrainConfig:
        preset = presets[name][1]()
        full_until = preset.num_steps // 20
        over_at = max(preset.num_steps // 2, full_until + 1)
        expert = Expert(optimizer, full_until, over_at)
        return dataclasses.replace(preset, expert=expert)

    return {name: (text, partial(make, name)) for name, (text, _) in presets.items()}
