"""Configurations as JSON (see `configuration.encoding`), and their differences."""

from __future__ import annotations

from typing import Any, TypeVar

from configuration import digests, encoding
from experiments.presets.estimators import earlier_form
from lopt.release import registry as optimizers
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.noise_reuse_es import NoiseReuseES
from metatrain.estimators.pes import PES
from metatrain.estimators.truncated_es import TruncatedES
from tasks import registry as tasks

T = TypeVar("T")

_OTHERS = encoding.kinds_of(
    *(PES, NoiseReuseES, TruncatedES, Backpropagation), *optimizers.KINDS.values()
)
tasks.reserve("another component", _OTHERS)


def components() -> dict[str, type]:
    """Returns the dataclasses that a field of an abstract type may hold, by `kind`."""
    return encoding.kinds_of(*tasks.KINDS.values(), *_OTHERS.values())


def encode(value: Any, *, absent: bool = False) -> Any:
    """Returns a configuration as JSON values (see `configuration.encoding.encode`)."""
    return encoding.encode(value, components(), absent=absent)


def decode(kind: type[T], data: Any, where: str = "config") -> T:
    """Rebuilds a configuration from JSON values.

    Raises:
        ValueError: naming the field that is unknown, missing or of a wrong type.
    """
    return encoding.decode(kind, data, where, components())


def digest_of(config: dict[str, Any]) -> str:
    """Returns a digest of everything that a run's results depend on.

    Args:
        config: the encoded configuration of the run. How it is run, and for how many
            outer steps, does not count.
    """
    counts = {k: v for k, v in config.items() if k not in ("run", "num_steps")}
    counts["estimator"] = earlier_form(config["estimator"])
    return digests.of_json(counts)


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested JSON objects by dotted path."""
    if not isinstance(data, dict):
        return {prefix: data}
    leaves: dict[str, Any] = {}
    for name, value in data.items():
        leaves |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return leaves


def differences(stored: Any, wanted: Any) -> list[str]:
    """Returns `field: stored value -> wanted value` for every leaf that differs."""
    left, right = flatten(stored), flatten(wanted)
    pairs = {n: (left.get(n, "absent"), right.get(n, "absent")) for n in left | right}
    return [
        f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if old != new
    ]
