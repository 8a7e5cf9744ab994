"""The estimators that a command line can name: `--estimator NAME`.

The name puts another estimator into a preset of `experiments.train`, with as much of
the preset's own as applies to both (particles, windows, lengths, σ);
`--estimator.FIELD VALUE` then changes its fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from configuration import encoding
from experiments.command_line import take_name
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.es import EvolutionStrategy

AnyEstimator: TypeAlias = EvolutionStrategy | Backpropagation
"""Every estimator, as a type for fields that hold one."""


def _as_full_es(preset: EvolutionStrategy) -> EvolutionStrategy:
    fields = _fields(preset, "refresh", "credit", "truncation", "lengths")
    return EvolutionStrategy.full_es(preset.lengths.maximum, **fields)


def _as_backpropagation(preset: EvolutionStrategy) -> Backpropagation:
    return Backpropagation(
        num_particles=preset.num_pairs,
        truncation=preset.truncation,
        chunk=preset.chunk,
        lengths=preset.lengths,
    )


def _fields(preset: EvolutionStrategy, *without: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(preset)]
    return {name: getattr(preset, name) for name in names if name not in without}


def _as_family(
    make: Callable[..., EvolutionStrategy],
) -> Callable[[EvolutionStrategy], EvolutionStrategy]:
    return lambda preset: make(**_fields(preset, "refresh", "credit"))


ESTIMATORS: dict[str, Callable[[EvolutionStrategy], AnyEstimator]] = {
    "pes": _as_family(EvolutionStrategy.pes),
    "truncated_es": _as_family(EvolutionStrategy.truncated_es),
    "noise_reuse_es": _as_family(EvolutionStrategy.noise_reuse_es),
    "full_es": _as_full_es,
    "backpropagation": _as_backpropagation,
}
"""By name, what makes one of a preset's own."""


def take_estimator(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes `--estimator NAME` out of a command line: the name, and what is left.

    Raises:
        InputError: if the name is missing or unknown.
    """
    return take_name(arguments, "--estimator", "estimator", ESTIMATORS)


def migrated(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored estimator in today's form.

    Before there were several, its credit was accumulated, fresh or episode; what has
    become a field since then was as the defaults are.
    """
    if "kind" in stored:
        return stored
    credit, lengths = stored.get("credit"), stored.get("lengths")
    refresh, credit = {
        "fresh": (1, "window"),
        "episode": ("episode", "accumulated"),
    }.get(str(credit), (1, credit))
    today = encoding.encode(EvolutionStrategy(), {})
    if isinstance(lengths, dict):
        lengths = (
            _later(today["lengths"], ("minimum", "maximum", "staggered")) | lengths
        )
    known = {"kind": "EvolutionStrategy", "refresh": refresh}
    changed = {"credit": credit, "lengths": lengths}
    return known | _later(today, (*_FIRST, "refresh")) | stored | changed


_FIRST = ("num_pairs", "truncation", "sigma", "credit", "chunk", "lengths")
"""Fields that a stored estimator always had."""


def _later(fields: dict[str, Any], first: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in first}
