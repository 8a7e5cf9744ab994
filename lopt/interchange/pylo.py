"""Folders of PyLO and the Hugging Face hub: config.json and model.safetensors.

A folder holds one network and its sizes. PyLO takes decays, their learned offsets and
scales of the step as arguments of a constructor; they are arguments here too, with
PyLO's defaults. The `.pt` files of some checkpoints are pickles and are not read.

References:
    Janson et al., PyLO, arXiv:2506.10315; Belilovsky-Lab/pylo at d05c6c1.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp

from configuration.fields import configuration, escaped
from lopt.interchange import tables
from lopt.interchange.tables import Source, Table
from lopt.learned.celo2 import Celo2
from lopt.learned.elo import ELO
from lopt.learned.small_fc import SmallFC
from lopt.learned.velo import VeLO
from lopt.release import pylo_form, weights
from lopt.release.artifact import CONFIG, WEIGHTS, Artifact, write_folder
from lopt.release.weights import Tensors
from parametrization.rules import ADAM_LIKE, Rules

T = TypeVar("T")

_META_MLP = {"hidden_layers": int, "hidden_size": int, "input_size": int}


@configuration
class Offsets:
    """Learned offsets of the decays of a MetaMLP.

    The defaults, PyLO's, belong to the checkpoint btherien/mulo; others have their own.
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
"""Offsets of a checkpoint without learned decays."""


def load_meta_mlp(
    folder: str | Path,
    *,
    offsets: Offsets | None = None,
    step_mult: float = 0.01,
    exp_mult: float = 0.001,
    rules: Rules = ADAM_LIKE,
) -> Artifact:
    """Reads small_fc_lopt or μLO from the folder of a `MetaMLP`.

    Args:
        folder: with config.json and model.safetensors.
        offsets: of the decays; by default those of PyLO's constructor.
        step_mult: scale of the step, 0.01 in PyLO.
        exp_mult: scale of the log-magnitude.
        rules: ADAM_LIKE for PyLO's MuLO, STANDARD for its AdafacLO.

    Raises:
        ValueError: naming the file and the entry that is missing, unknown or wrong.
    """
    folder = Path(folder)
    config = read_config(folder, _META_MLP)
    fields = {
        "hidden_size": config["hidden_size"],
        "hidden_layers": config["hidden_layers"] + 1,
        "step_mult": step_mult,
        "exp_mult": exp_mult,
        "rules": rules,
    }
    optimizer = configured(SmallFC, fields, folder)
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


def load_elo(folder: str | Path, **fields: Any) -> Artifact:
    """Reads ELO, which learns no decays, from the folder of a `MetaMLP`.

    `fields` are those of our `ELO` other than the sizes; raises as `load_meta_mlp`.
    """
    network = load_meta_mlp(folder, offsets=NO_OFFSETS)
    rule = network.optimizer
    sizes = {name: getattr(rule, name) for name in ("hidden_size", "hidden_layers")}
    optimizer = configured(ELO, sizes | fields, Path(folder))
    theta = {name: x for name, x in network.theta.items() if name.startswith("layer_")}
    weights.check_theta(optimizer, theta)
    return Artifact(optimizer, theta, provenance=network.provenance)


def load_celo2(folder: str | Path, **fields: Any) -> Artifact:
    """Reads CELO2 or ELO-CELO2 from the folder of a `CELO2MLP`.

    `fields` are those of our `Celo2` other than the sizes, by default PyLO's: Adam with
    its bias corrected, at the rate of the matrices. `lopt.learned.elo.ELO_CELO2` holds
    those recommended for the weights of ELO-CELO2. Raises as `load_meta_mlp`.
    """
    folder = Path(folder)
    config = read_config(folder, _CELO2_MLP)
    sizes = {key: config[key] for key in ("hidden_size", "hidden_layers")}
    optimizer = configured(Celo2, sizes | _CELO2_DEFAULTS | fields, folder)
    check_config(config, _celo2_config(optimizer), folder / CONFIG)
    path = folder / WEIGHTS
    shapes = weights.expected_shapes(optimizer)
    tensors = weights.read(path)
    theta = tables.to_theta(tensors, _celo2_table(optimizer), shapes, path)
    return Artifact(optimizer, theta, provenance=source(folder, "CELO2MLP"))


def check_config(
    config: Mapping[str, Any], wanted: Mapping[str, Any], path: Path
) -> None:
    """Raises ValueError if a config.json contradicts the rule."""
    for key, value in wanted.items():
        if config[key] != value:
            raise ValueError(
                f"{path}: {key} = {config[key]!r} must be {value!r}, as in this rule"
            )


def configured(kind: Callable[..., T], fields: Mapping[str, Any], folder: Path) -> T:
    """Returns an optimizer with these fields; errors name the folder's config.json."""
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None


def load(folder: str | Path, **fields: Any) -> Artifact:
    """Reads an optimizer of the class that config.json shows; a `MetaMLP` as μLO.

    Raises:
        ValueError: as the loaders of the classes, or if the class is none of them.
    """
    config = read_config(Path(folder), {})
    if "feature_dims" in config:
        return load_celo2(folder, **fields)
    if "input_size" in config and "param_inits" not in config:
        return load_meta_mlp(folder, **fields)
    raise ValueError(
        f"{Path(folder) / CONFIG} is of no class that is known: MetaMLP, CELO2MLP "
        "(VeLO is two folders: see pylo_velo)"
    )


def save(artifact: Artifact, folder: str | Path, *, replace: bool = False) -> None:
    """Writes the folder of PyLO's class for an optimizer.

    The folder of a SmallFC is that of `Artifact.save`: PyLO reads it, and the block
    `pylo` of its config.json holds the arguments for the constructor.

    Args:
        artifact: the optimizer and its θ.
        folder: must not exist, unless `replace`.
        replace: whether an existing folder is replaced.

    Raises:
        ValueError: if PyLO has no class for the optimizer, or θ does not fit it.
        FileExistsError: if the folder exists and `replace` is False.
    """
    optimizer = artifact.optimizer
    if isinstance(optimizer, SmallFC):
        if not pylo_form.can_hold(optimizer):
            bound = f"largest_step = {optimizer.largest_step}"
            raise ValueError(f"PyLO runs no {type(optimizer).__name__} with {bound}")
        artifact.save(folder, replace=replace)
        return
    theta = weights.check_theta(optimizer, artifact.theta)
    if isinstance(optimizer, ELO):
        tensors = pylo_form.to_tensors(optimizer.rule, artifact.theta)
        config = _meta_mlp_config(optimizer.rule)
    elif isinstance(optimizer, Celo2):
        tensors = tables.from_theta(theta, _celo2_table(optimizer))
        config = _celo2_config(optimizer)
    else:
        where = ": it has two folders, see pylo_velo.save" * isinstance(optimizer, VeLO)
        name = type(optimizer).__name__
        raise ValueError(f"PyLO has no folder for a {name}{where}")
    write(Path(folder), tensors, config, replace)


def write(
    folder: Path, tensors: Tensors, config: Mapping[str, Any], replace: bool
) -> None:
    """Writes a folder in PyLO's form, atomically."""
    write_folder(folder, tensors, json.dumps(config, indent=2, sort_keys=True), replace)


_CELO2_MLP = {
    "activation": str,
    "feature_dims": list,
    "hidden_layers": int,
    "hidden_size": int,
    "output_size": int,
}
_CELO2_DEFAULTS = {"adam_mult": 1.0, "bias_corrected": True}


def _meta_mlp_config(optimizer: SmallFC) -> dict[str, Any]:
    return {
        "hidden_layers": optimizer.hidden_layers - 1,
        "hidden_size": optimizer.hidden_size,
        "input_size": len(optimizer.feature_names),
    }


def _celo2_config(optimizer: Celo2) -> dict[str, Any]:
    first = _celo2_table(optimizer)["layer_0/kernel"]
    return {
        "activation": "relu",
        "feature_dims": list(first.rows),
        "hidden_layers": optimizer.hidden_layers,
        "hidden_size": optimizer.hidden_size,
        "output_size": 3,
    }


def _celo2_table(optimizer: Celo2) -> Table:
    """Returns the names of a `CELO2MLP`; its matrices are `[in, out]`, as ours."""
    rows = tables.velo_rows(len(optimizer.momentum_decays))
    table = {
        "layer_0/kernel": Source(tuple(f"w0.{i}" for i in range(len(rows))), rows),
        "layer_0/bias": tables.same("b0"),
    }
    for i in range(optimizer.hidden_layers):
        table |= tables.layer(f"layer_{i + 1}", f"dense_w.{i}", f"dense_b.{i}")
    return table


def read_config(folder: Path, keys: Mapping[str, type]) -> dict[str, Any]:
    """Reads a folder's config.json; like PyLO, ignores all but these keys.

    Raises:
        ValueError: naming the file and the key that is missing or of a wrong type.
    """
    path = folder / CONFIG
    config = weights.read_json(path)
    for key, kind in keys.items():
        if key not in config:
            raise ValueError(f"{path}: {key} is missing")
        if type(config[key]) is not kind:
            raise ValueError(
                f"{path}: {key} = {config[key]!r} must be of type {kind.__name__}"
            )
    return config


def source(folder: Path, kind: str) -> dict[str, Any]:
    """Returns the provenance of an imported folder."""
    return {"imported": {"format": "PyLO", "class": kind, "from": escaped(folder.name)}}
