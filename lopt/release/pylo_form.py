"""small_fc_lopt in the form that PyLO reads: the first and third schema of artifacts.

The safetensors file holds the network under PyLO's names and orientation. config.json
holds PyLO's keys at top level and all other fields nested below them. The PyTorch
adapter of this project reads the same form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np

from lopt.base import LearnedOptimizer, Theta
from lopt.learned.small_fc import SmallFC
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.features import TIME_SCALES
from lopt.release import weights
from lopt.release.weights import Tensors
from parametrization.rules import Rules

# Offsets of decays in θ, and PyLO's word for them in config.json.
OFFSETS = (
    ("momentum_offsets", "momentum"),
    ("second_moment_offsets", "rms"),
    ("factored_offsets", "adafactor"),
)


TENSOR_SCHEMA, MATRIX_SCHEMA = 1, 3
"""Versions of the form. The third adds `factored_axes`, which is "tensor" in the first:
a new version, since readers of the first would ignore the field."""


def can_hold(optimizer: LearnedOptimizer) -> TypeGuard[SmallFC]:
    """Whether the form holds the optimizer; it holds no subclass of SmallFC.

    It lacks `SmallFC.NOT_STORED`, which are defaults in what is read. Readers of the
    form, PyLO among them, know no bound of a step.
    """
    return type(optimizer) is SmallFC and optimizer.largest_step is None


def schema_version(lopt: SmallFC) -> int:
    """Returns the oldest version of the form that holds the optimizer."""
    return TENSOR_SCHEMA if lopt.factored_axes == "tensor" else MATRIX_SCHEMA


def to_config(lopt: SmallFC, theta: Theta, base: Mapping[str, int]) -> dict[str, Any]:
    """Returns PyLO's keys, the optimizer's fields and arguments for PyLO's class."""
    offsets = {word: [float(x) for x in theta[name]] for name, word in OFFSETS}
    matrix = schema_version(lopt) == MATRIX_SCHEMA
    factored_axes = {"factored_axes": lopt.factored_axes} if matrix else {}
    return {
        "input_size": len(lopt.feature_names),
        "hidden_size": lopt.hidden_size,
        "hidden_layers": lopt.hidden_layers - 1,
        "optimizer": {
            "class": "SmallFC",
            "hidden_size": lopt.hidden_size,
            "hidden_layers": lopt.hidden_layers,
            "step_mult": lopt.step_mult,
            "exp_mult": lopt.exp_mult,
            "momentum_decays": list(lopt.momentum_decays),
            "rms_decays": [lopt.second_moment_decay],
            "adafactor_decays": list(lopt.factored_decays),
            **{f"{word}_offsets": values for word, values in offsets.items()},
            "epsilons": dataclasses.asdict(lopt.epsilons),
            "time_scales": list(TIME_SCALES),
            "features": list(lopt.feature_names),
            "rules": lopt.rules.name,
            **factored_axes,
            "base": dict(base),
        },
        "pylo": {
            **{f"{word}_decays": values for word, values in offsets.items()},
            "step_mult": lopt.step_mult,
            "exp_mult": lopt.exp_mult,
            "lr": 1.0,
            "exact": False,
            "reason": _pylo_reason(lopt),
        },
    }


def to_tensors(optimizer: SmallFC, theta: Theta) -> Tensors:
    """Returns the network's weights as in torch, `[out, in]`."""
    tensors = {}
    for i, name in enumerate(layer_names(optimizer.hidden_layers)):
        layer = theta[f"layer_{i}"]
        kernel = np.asarray(layer["kernel"], np.float32)
        tensors[f"{name}.weight"] = np.ascontiguousarray(kernel.T)
        tensors[f"{name}.bias"] = np.asarray(layer["bias"], np.float32)
    return tensors


def from_config(config: dict[str, Any]) -> SmallFC:
    """Returns the optimizer that config.json describes.

    Raises:
        ValueError, KeyError, TypeError: if it does not describe one.
    """
    stored = config["optimizer"]
    if stored["class"] != "SmallFC":
        raise ValueError(
            f"optimizer.class = {stored['class']!r} is unknown; in this schema it must "
            "be 'SmallFC'"
        )
    names = [rule.name for rule in Rules]
    if stored["rules"] not in names:
        raise ValueError(f"optimizer.rules = {stored['rules']!r} is not one of {names}")
    _check_sizes(config)
    floors = [field.name for field in dataclasses.fields(Epsilons)]
    if sorted(stored["epsilons"]) != sorted(floors):
        raise ValueError(
            f"optimizer.epsilons names {sorted(stored['epsilons'])}, must name "
            f"{sorted(floors)}"
        )
    (second_moment_decay,) = stored["rms_decays"]
    matrix = config["schema_version"] == MATRIX_SCHEMA
    axes = stored["factored_axes"] if matrix else "tensor"
    if stored.get("factored_axes", axes) != axes:
        raise ValueError(
            f"optimizer.factored_axes = {stored['factored_axes']!r}, but here "
            f"must be absent or {axes!r}: export the optimizer again"
        )
    optimizer = SmallFC(
        hidden_size=stored["hidden_size"],
        hidden_layers=stored["hidden_layers"],
        step_mult=stored["step_mult"],
        exp_mult=stored["exp_mult"],
        momentum_decays=tuple(stored["momentum_decays"]),
        second_moment_decay=second_moment_decay,
        factored_decays=tuple(stored["adafactor_decays"]),
        epsilons=Epsilons(**stored["epsilons"]),
        rules=Rules[stored["rules"]],
        factored_axes=axes,
    )
    names = optimizer.feature_names
    if tuple(stored["features"]) != names or config["input_size"] != len(names):
        raise ValueError("features or input_size differ from those of this version")
    if tuple(stored["time_scales"]) != TIME_SCALES:
        raise ValueError("optimizer.time_scales differ from those of this version")
    return optimizer


def from_files(
    optimizer: SmallFC, stored: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Returns θ from the weights' file and the offsets in config.json."""
    theta = network(optimizer, weights.read(path), path)
    for name, word in OFFSETS:
        offsets = stored[f"{word}_offsets"]
        expected = len(stored[f"{word}_decays"])
        numbers = isinstance(offsets, list) and all(
            # Not of float32: 1e39, and NaN.
            type(x) in (int, float) and abs(x) <= float(np.finfo(np.float32).max)
            for x in offsets
        )
        if not numbers or len(offsets) != expected:
            raise ValueError(
                f"optimizer.{word}_offsets = {offsets} must be {expected} finite "
                "numbers of float32"
            )
        theta[name] = jnp.asarray(offsets, jnp.float32)
    return theta


def network(optimizer: SmallFC, tensors: Tensors, path: Path) -> dict[str, Any]:
    """Returns the layers of θ from PyLO's tensors.

    Raises:
        ValueError: naming the file and the tensor that is missing, unknown or wrong.
    """
    hidden = [optimizer.hidden_size] * optimizer.hidden_layers
    sizes = [len(optimizer.feature_names), *hidden, 2]
    names = layer_names(optimizer.hidden_layers)
    shapes: dict[str, tuple[int, ...]] = {}
    for i, name in enumerate(names):
        shapes[f"{name}.weight"] = (sizes[i + 1], sizes[i])
        shapes[f"{name}.bias"] = (sizes[i + 1],)
    weights.check(tensors, shapes, path)
    return {
        f"layer_{i}": {
            "kernel": jnp.asarray(tensors[f"{name}.weight"].T),
            "bias": jnp.asarray(tensors[f"{name}.bias"]),
        }
        for i, name in enumerate(names)
    }


def layer_names(hidden_layers: int) -> list[str]:
    """Returns PyLO's names of the layers, first to last."""
    middle = [f"network.linear_{i}" for i in range(hidden_layers - 1)]
    return ["network.input", *middle, "network.output"]


def _check_sizes(config: dict[str, Any]) -> None:
    """Checks that the sizes in PyLO's keys and in `optimizer` agree."""
    for name, offset in (("hidden_size", 0), ("hidden_layers", 1)):
        size, theirs = config["optimizer"][name], config[name]
        if type(size) is not int or size != theirs + offset:
            raise ValueError(
                f"optimizer.{name} = {size!r} must be a whole number and fit {name} = "
                f"{theirs!r} at top level"
            )


def _pylo_reason(lopt: SmallFC) -> str:
    reasons = ["PyLO breaks ties of square tensors in torch order"]
    if lopt.epsilons != Epsilons():
        reasons.append("its floors are fixed at the paper's values")
    if lopt.rules is not Rules.STANDARD:
        reasons.append("its base width is that of mup.set_base_shapes")
    if (
        lopt.momentum_decays != (0.9, 0.99, 0.999)
        or lopt.factored_decays != (0.9, 0.99, 0.999)
        or lopt.second_moment_decay != 0.999
    ):
        reasons.append("pass the initial decays of `optimizer` as well")
    return "; ".join(reasons)
