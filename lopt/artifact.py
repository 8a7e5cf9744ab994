"""The released form of a learned optimizer: a folder of weights and JSON.

`model.safetensors` holds the network under the names, shapes and orientation that PyLO
reads; `config.json` holds at top level exactly the keys that PyLO reads and, nested
below them, everything else that the optimizer is: decays and their learned offsets,
floors, feature names, parametrization and base. `SHA256SUMS` covers both, and the
folder appears by one rename. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lopt.base import Specs, Theta
from lopt.epsilons import Epsilons
from lopt.features import TIME_SCALES
from lopt.integrity import SUMS, publish, verify_sums
from lopt.small_fc import SmallFC
from parametrization.rules import Rules

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FILES = (WEIGHTS, CONFIG, SUMS)

# (name of the decays in SmallFC, in θ, and in config.json, which uses PyLO's words)
_DECAYS = (
    ("momentum_decays", "momentum_offsets", "momentum"),
    ("second_moment_decay", "second_moment_offsets", "rms"),
    ("factored_decays", "factored_offsets", "adafactor"),
)

_NOT_UNDERSTOOD = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclasses.dataclass(frozen=True, eq=False)
class Artifact:
    """A trained optimizer: the rule, all of θ, and where it comes from."""

    optimizer: SmallFC
    theta: Theta
    base: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Base width and depth of meta-training, where μP multipliers are 1."""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How θ was made: configuration, step, data, versions; any JSON."""

    def as_optax(
        self, specs: Specs, num_steps: int
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer, for parameters with these specs (see `LearnedOptimizer`)."""
        return self.optimizer.as_optax(self.theta, specs, num_steps)

    def save(self, folder: str | Path, *, replace: bool = False) -> None:
        """Writes the folder.

        Args:
            folder: must not exist, unless it is to be replaced.
            replace: whether an older artifact gives way, once this one is complete.

        Raises:
            FileExistsError: if the folder exists and is not to be replaced.
            ValueError: if θ is not finite or does not belong to the optimizer.
        """
        _check_theta(self.optimizer, self.theta)
        tensors = _to_pylo(self.optimizer, self.theta)
        offsets = {name: _floats(self.theta[name]) for _, name, _ in _DECAYS}
        for name, values in {**tensors, **offsets}.items():
            if not np.all(np.isfinite(values)):
                raise ValueError(f"theta is not finite in {name}; nothing was written")
        config = json.dumps(self._config(), indent=2, allow_nan=False)

        def write(temporary: Path) -> None:
            save_file(tensors, temporary / WEIGHTS)
            (temporary / CONFIG).write_text(config + "\n")

        publish(Path(folder), write, replace=replace)

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Reads and verifies a folder.

        Raises:
            ValueError: naming the file that is missing, damaged or not understood.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder of a released optimizer")
        try:
            verify_sums(folder, (WEIGHTS, CONFIG))
        except OSError as error:
            raise ValueError(f"{folder} cannot be read: {error}") from None
        config = _read_config(folder / CONFIG)
        try:
            return cls._from_config(config, folder / WEIGHTS)
        except _NOT_UNDERSTOOD as error:
            message = str(error)
            if str(folder) in message:
                raise ValueError(message) from None
            what = f"{error!r}" if isinstance(error, KeyError) else message
            raise ValueError(
                f"{folder / CONFIG} does not describe an optimizer: {what}"
            ) from None

    def _config(self) -> dict[str, Any]:
        lopt = self.optimizer
        decays = {
            "momentum_decays": list(lopt.momentum_decays),
            "rms_decays": [lopt.second_moment_decay],
            "adafactor_decays": list(lopt.factored_decays),
        }
        offsets = {word: _floats(self.theta[name]) for _, name, word in _DECAYS}
        return {
            "input_size": len(lopt.feature_names),
            "hidden_size": lopt.hidden_size,
            "hidden_layers": lopt.hidden_layers - 1,
            "schema_version": SCHEMA_VERSION,
            "optimizer": {
                "class": "SmallFC",
                "hidden_size": lopt.hidden_size,
                "hidden_layers": lopt.hidden_layers,
                "step_mult": lopt.step_mult,
                "exp_mult": lopt.exp_mult,
                **decays,
                **{f"{word}_offsets": values for word, values in offsets.items()},
                "epsilons": dataclasses.asdict(lopt.epsilons),
                "time_scales": list(TIME_SCALES),
                "features": list(lopt.feature_names),
                "rules": lopt.rules.name,
                "base": dict(self.base),
            },
            "provenance": dict(self.provenance),
            "pylo": {
                **{f"{word}_decays": values for word, values in offsets.items()},
                "step_mult": lopt.step_mult,
                "exp_mult": lopt.exp_mult,
                "lr": 1.0,
                "exact": False,
                "reason": _pylo_reason(lopt),
            },
        }

    @classmethod
    def _from_config(cls, config: dict[str, Any], weights: Path) -> Artifact:
        stored = config["optimizer"]
        if stored["class"] != "SmallFC":
            raise ValueError(
                f"optimizer.class = {stored['class']!r} is unknown; this version "
                "reads 'SmallFC'"
            )
        names = [rule.name for rule in Rules]
        if stored["rules"] not in names:
            raise ValueError(
                f"optimizer.rules = {stored['rules']!r} is not one of {names}"
            )
        _check_sizes(config)
        floors = [field.name for field in dataclasses.fields(Epsilons)]
        if sorted(stored["epsilons"]) != sorted(floors):
            raise ValueError(
                f"optimizer.epsilons names {sorted(stored['epsilons'])}, must name "
                f"{sorted(floors)}"
            )
        (second_moment_decay,) = stored["rms_decays"]
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
        )
        names = optimizer.feature_names
        if tuple(stored["features"]) != names or config["input_size"] != len(names):
            raise ValueError("features or input_size differ from those of this version")
        if tuple(stored["time_scales"]) != TIME_SCALES:
            raise ValueError("optimizer.time_scales differ from those of this version")
        theta = _from_pylo(optimizer, weights)
        for _, name, word in _DECAYS:
            offsets = stored[f"{word}_offsets"]
            expected = len(stored[f"{word}_decays"])
            finite = all(math.isfinite(offset) for offset in offsets)
            if len(offsets) != expected or not finite:
                raise ValueError(
                    f"optimizer.{word}_offsets = {offsets} must be {expected} finite "
                    "numbers"
                )
            theta[name] = jnp.asarray(offsets, jnp.float32)
        for name, value in (
            ("optimizer.base", stored["base"]),
            ("provenance", config["provenance"]),
        ):
            if not isinstance(value, dict):
                raise ValueError(f"{name} = {value!r} must be an object")
        return cls(optimizer, theta, stored["base"], config["provenance"])


def _check_sizes(config: dict[str, Any]) -> None:
    """The network's sizes are whole numbers, the same for PyLO and for us."""
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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object")
    version = config.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(f"{path} has no schema_version: {version!r}")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {version}; this version reads {SCHEMA_VERSION}"
        )
    return config


def _check_theta(optimizer: SmallFC, theta: Theta) -> None:
    """θ must have the tree and the shapes that the optimizer's own θ has."""
    expected = jax.eval_shape(optimizer.init, jax.random.key(0))
    shapes, wanted = (jax.tree.map(jnp.shape, tree) for tree in (theta, expected))
    if shapes != wanted:
        raise ValueError(
            f"theta does not belong to {optimizer}: its shapes are {shapes}, must be "
            f"{wanted}"
        )


def _layer_names(optimizer: SmallFC) -> list[str]:
    """PyLO's names of the layers, first to last."""
    middle = [f"network.linear_{i}" for i in range(optimizer.hidden_layers - 1)]
    return ["network.input", *middle, "network.output"]


def _to_pylo(optimizer: SmallFC, theta: Theta) -> dict[str, np.ndarray]:
    """Network weights as torch keeps them: `[out, in]`."""
    tensors = {}
    for i, name in enumerate(_layer_names(optimizer)):
        layer = theta[f"layer_{i}"]
        kernel = np.asarray(layer["kernel"], np.float32)
        tensors[f"{name}.weight"] = np.ascontiguousarray(kernel.T)
        tensors[f"{name}.bias"] = np.asarray(layer["bias"], np.float32)
    return tensors


def _from_pylo(optimizer: SmallFC, path: Path) -> dict[str, Any]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
    hidden = [optimizer.hidden_size] * optimizer.hidden_layers
    sizes = [len(optimizer.feature_names), *hidden, 2]
    theta: dict[str, Any] = {}
    for i, name in enumerate(_layer_names(optimizer)):
        kernel = _take(tensors, f"{name}.weight", (sizes[i + 1], sizes[i]), path)
        bias = _take(tensors, f"{name}.bias", (sizes[i + 1],), path)
        theta[f"layer_{i}"] = {
            "kernel": jnp.asarray(kernel.T),
            "bias": jnp.asarray(bias),
        }
    if tensors:
        raise ValueError(f"{path} holds unknown tensors: {sorted(tensors)}")
    return theta


def _take(
    tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], path: Path
) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"{path} lacks the tensor {name}")
    value = tensors.pop(name)
    if value.shape != shape or value.dtype != np.float32:
        raise ValueError(
            f"{path}: {name} is {value.dtype} of shape {value.shape}, must be float32 "
            f"of shape {shape}"
        )
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{path}: {name} holds values that are not finite")
    return value


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]
