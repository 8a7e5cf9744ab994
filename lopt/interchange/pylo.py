"""Folders of PyLO and the Hugging Face hub: config.json and model.safetensors.

A folder holds one network and its sizes. What else an optimizer is (decays and their
learned offsets, scales of the step) PyLO takes as arguments of a constructor, so it is
an argument here too, with PyLO's defaults. Only safetensors are read: the `.pt` files
of some checkpoints are pickles.

References:
    Janson et al., PyLO, arXiv:2506.10315; Belilovsky-Lab/pylo at d05c6c1.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lopt import pylo_form, weights
from lopt.artifact import Artifact
from lopt.small_fc import SmallFC
from parametrization.rules import ADAM_LIKE, Rules

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_META_MLP = {"hidden_layers": int, "hidden_size": int, "input_size": int}


@dataclasses.dataclass(frozen=True)
class Offsets:
    """Learned offsets of the decays of a MetaMLP; the defaults are those of PyLO.

    They belong to the checkpoint btherien/mulo. Another checkpoint has its own; those
    of one without learned decays are zero.
    """

    momentum: tuple[float, ...] = (0.15216392, 0.14245212, 0.06812963)
    """`momentum_decays` of PyLO's constructor."""
    second_moment: tuple[float, ...] = (0.01079706,)
    """`rms_decays`."""
    factored: tuple[float, ...] = (0.18621896, -0.10864615, -0.06185547)
    """`adafactor_decays`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"offsets.{field.name} = {values} must be finite")


NO_OFFSETS = Offsets((0.0,) * 3, (0.0,), (0.0,) * 3)
"""Decays at their initial values."""


def load_meta_mlp(
    folder: str | Path,
    *,
    offsets: Offsets | None = None,
    step_mult: float = 0.01,
    exp_mult: float = 0.001,
    rules: Rules = ADAM_LIKE,
) -> Artifact:
    """small_fc_lopt or μLO from the folder of a `MetaMLP`.

    Args:
        folder: with config.json and model.safetensors.
        offsets: of the decays; by default those of PyLO's constructor.
        step_mult: scale of the step, 0.01 in PyLO.
        exp_mult: scale of the log-magnitude.
        rules: ADAM_LIKE for what PyLO calls MuLO, STANDARD for its AdafacLO.

    Raises:
        ValueError: naming the file, and what is missing, unknown or wrong in it.
    """
    folder = Path(folder)
    config = read_config(folder, _META_MLP)
    try:
        optimizer = SmallFC(
            hidden_size=config["hidden_size"],
            hidden_layers=config["hidden_layers"] + 1,
            step_mult=step_mult,
            exp_mult=exp_mult,
            rules=rules,
        )
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    num_inputs = len(optimizer.feature_names)
    if config["input_size"] != num_inputs:
        raise ValueError(
            f"{folder / CONFIG}: input_size = {config['input_size']} must be "
            f"{num_inputs}, the features of this rule"
        )
    path = folder / WEIGHTS
    theta = pylo_form.network(optimizer, weights.read(path), path)
    for name, values in dataclasses.asdict(offsets or Offsets()).items():
        theta[f"{name}_offsets"] = jnp.asarray(values, jnp.float32)
    artifact = Artifact(optimizer, theta, provenance=source(folder, "MetaMLP"))
    weights.check_theta(optimizer, theta)
    return artifact


def read_config(folder: Path, keys: Mapping[str, type]) -> dict[str, Any]:
    """The named keys of a folder's config.json; PyLO ignores others too.

    Raises:
        ValueError: naming the file and the key that is missing or of a wrong type.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object")
    for key, kind in keys.items():
        if key not in config:
            raise ValueError(f"{path}: {key} is missing")
        if type(config[key]) is not kind:
            raise ValueError(
                f"{path}: {key} = {config[key]!r} must be of type {kind.__name__}"
            )
    return {key: config[key] for key in keys}


def source(folder: Path, kind: str) -> dict[str, Any]:
    """Provenance of what was read from a folder."""
    return {"imported": {"format": "PyLO", "class": kind, "from": folder.name}}
