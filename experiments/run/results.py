"""Numbers and figures that a command writes into its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configuration import identity
from configuration.files import write_bytes, write_text
from experiments.command_line import reported
from experiments.presets.serialization import encode
from experiments.run.environment import describe_machine
from experiments.signals import unwinding


def write_results(
    folder: Path,
    name: str,
    config: Any,
    results: Mapping[str, Any],
    figures: Mapping[str, bytes],
) -> None:
    """Writes a JSON record and PNG figures, and prints their names.

    Args:
        folder: an existing folder.
        name: file of the record, which also holds the configuration, the machine,
            versions and settings.
        config: the command's configuration.
        results: JSON values, tuples and arrays; non-finite numbers become null.
        figures: contents by file name.
    """
    record = {"config": encode(config), "machine": describe_machine()}
    record |= identity.surroundings()
    text = json.dumps(record | storable(results), allow_nan=False) + "\n"
    with reported(), unwinding():
        for file, figure in figures.items():
            write_bytes(folder / file, figure)
        write_text(folder / name, text)
    print(f"wrote {', '.join([*figures, name])} to {folder}")


def storable(value: Any) -> Any:
    """Returns a value with lists for tuples and arrays, null for non-finite floats."""
    if isinstance(value, Mapping):
        return {name: storable(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return storable(value.tolist())
    if isinstance(value, tuple | list):
        return [storable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
