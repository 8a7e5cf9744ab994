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
from configuration.fields import shown
from experiments.command_line import InputError, take_name
from metatrain.estimators.antithetic import AntitheticES
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.controls import Controls
from metatrain.estimators.noise_reuse_es import NoiseReuseES
from metatrain.estimators.pes import PES
from metatrain.estimators.truncated_es import TruncatedES

AnyEstimator: TypeAlias = PES | NoiseReuseES | TruncatedES | Backpropagation
"""Every estimator, as a type for fields that hold one."""


def _shared(preset: AntitheticES) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(AntitheticES)]
    return {name: getattr(preset, name) for name in names}


def _full_es(preset: AntitheticES) -> NoiseReuseES:
    fields = _shared(preset)
    del fields["truncation"], fields["lengths"]
    return NoiseReuseES.full(preset.lengths.maximum, **fields)


def _backpropagation(preset: AntitheticES) -> Backpropagation:
    return Backpropagation(
        num_particles=preset.num_pairs,
        truncation=preset.truncation,
        chunk=preset.chunk,
        lengths=preset.lengths,
    )


ESTIMATORS: dict[str, Callable[[AntitheticES], AnyEstimator]] = {
    "pes": lambda preset: PES(**_shared(preset)),
    "truncated_es": lambda preset: TruncatedES(**_shared(preset)),
    "noise_reuse_es": lambda preset: NoiseReuseES(**_shared(preset)),
    "full_es": _full_es,
    "backpropagation": _backpropagation,
}
"""By name, functions that make the estimator from a preset's own."""


def take_estimator(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes `--estimator NAME` out of a command line, and returns the rest too.

    Raises:
        InputError: if the name is missing or unknown.
    """
    return take_name(arguments, "--estimator", "estimator", ESTIMATORS)


def check_full(estimator: AnyEstimator) -> None:
    """Checks that each episode is one window, as `--estimator full_es` says.

    Raises:
        InputError: if a window is shorter than the longest episode.
    """
    longest, window = estimator.lengths.longest, estimator.truncation
    if window < longest:
        raise InputError(
            f"--estimator full_es: truncation = {window} must be at least the longest "
            f"episode, {longest} steps: change lengths.minimum and lengths.maximum "
            "too, or use --estimator noise_reuse_es"
        )


_FAMILY = "EvolutionStrategy"
"""Kind under which schema 1 stored all evolution strategies."""
_CONTROLS = tuple(field.name for field in dataclasses.fields(Controls))


def earlier_form(estimator: dict[str, Any]) -> dict[str, Any]:
    """Returns an encoded estimator in the form of schema 1.

    A run's identity is a digest of this form, so the checkpoints of runs from before
    the estimators had classes of their own still belong to them.
    """
    kinds = {
        "PES": (estimator.get("refresh"), "accumulated"),
        "NoiseReuseES": ("episode", "accumulated"),
        "TruncatedES": (1, "window"),
    }
    kind = estimator.get("kind")
    if kind not in kinds:
        return estimator
    refresh, credit = kinds[kind]
    fields = {k: v for k, v in estimator.items() if k != "controls"}
    named = {"kind": _FAMILY, "refresh": refresh, "credit": credit}
    return fields | estimator["controls"] | named


def migrated(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored estimator in today's form.

    Raises:
        InputError: if no estimator has its combination of refresh and credit, or it
            was not written by any version.
    """
    if "kind" not in stored:
        stored = _of_the_only_estimator(stored)
    refresh, credit = stored.get("refresh"), stored.get("credit")
    # True and 1.0 equal 1, so later comparisons would accept them.
    if "refresh" in stored and refresh != "episode" and type(refresh) is not int:
        raise InputError(
            f"estimator: refresh = {refresh!r} must be a whole number or 'episode': "
            "restore the run's own config.json"
        )
    if stored["kind"] != _FAMILY:
        return stored
    if "controls" in stored:
        raise InputError(
            f"estimator: controls = {shown(stored['controls'])} is not a field of "
            f"{_FAMILY}, which holds each of them by itself: restore the run's own "
            "config.json"
        )
    own = ("kind", "refresh", "credit", *_CONTROLS)
    fields = {k: v for k, v in stored.items() if k not in own}
    fields["controls"] = {k: stored[k] for k in _CONTROLS if k in stored}
    if refresh == "episode" and credit == "accumulated":
        return {"kind": "NoiseReuseES"} | fields
    if refresh != "episode" and credit == "accumulated":
        return {"kind": "PES", "refresh": refresh} | fields
    if credit == "window" and refresh == 1:
        return {"kind": "TruncatedES"} | fields
    raise InputError(
        f"estimator: refresh = {refresh!r} with credit = {credit!r} is no longer "
        "supported: continue this run with the version that began it"
    )


def _of_the_only_estimator(stored: dict[str, Any]) -> dict[str, Any]:
    """Converts an estimator from before there were several to the form of schema 1.

    Its credit was accumulated, fresh or episode; later fields have their defaults.
    With a refresh, which it had not, the credit is already that of schema 1.
    """
    credits = {"fresh": (1, "window"), "episode": ("episode", "accumulated")}
    credit = stored.get("credit")
    refresh, credit = (
        (stored["refresh"], credit)
        if "refresh" in stored
        else credits.get(str(credit), (1, credit))
    )
    defaults = earlier_form({"kind": "PES"} | encoding.encode(PES(), {}))
    first = ("num_pairs", "truncation", "sigma", "chunk", "lengths")
    defaults = {k: v for k, v in defaults.items() if k not in first}
    lengths = stored.get("lengths")
    if isinstance(lengths, dict):
        later = encoding.encode(PES().lengths, {})
        later = {k: later[k] for k in ("distribution", "stages", "growth")}
        lengths = later | lengths
    changed = {"refresh": refresh, "credit": credit, "lengths": lengths}
    return defaults | stored | changed
