"""The released form of a learned optimizer: a folder of weights and JSON.

`model.safetensors` holds θ, `config.json` the optimizer's fields and its provenance,
and `SHA256SUMS` covers both. The folder appears by one rename. Nothing is unpickled.

There are three schemas. The first and the third are of small_fc_lopt alone and can be
read by PyLO and by our PyTorch adapter (`lopt.release.pylo_form`). The second holds any
other optimizer of `lopt.release.registry`: its fields as `configuration.encoding`
writes them, its θ under the paths of its leaves.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax
from safetensors import SafetensorError
from safetensors.numpy import save_file

from configuration import encoding, identity
from configuration.fields import encodable
from configuration.files import (
    SUMS,
    TEXT_LIMIT,
    WEIGHTS_LIMIT,
    publish,
    read_bytes,
    verify_sums,
)
from lopt.base import Specs, Theta
from lopt.per_parameter.forms import Execution, with_execution
from lopt.release import pylo_form, registry, weights
from lopt.release.registry import AnyLearned
from lopt.release.weights import Tensors

PYLO_SCHEMAS = (pylo_form.TENSOR_SCHEMA, pylo_form.MATRIX_SCHEMA)
GENERAL_SCHEMA = 2
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FILES = (WEIGHTS, CONFIG, SUMS)

_NOT_UNDERSTOOD = (
    *(KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Artifact:
    """A trained optimizer: its rule, θ and provenance."""

    optimizer: AnyLearned
    theta: Theta
    base: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Base width and depth of meta-training, where μP multipliers are 1."""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Configuration, step, data and versions of the training run; any JSON."""

    def __post_init__(self) -> None:
        for name, size in self.base.items():
            if type(size) is not int or size < 1:
                raise ValueError(
                    f"base.{name} = {size!r} must be a whole number, at least 1"
                )
        # Reports show them: found here, rather than once an evaluation is done.
        for name, value in (("base", self.base), ("provenance", self.provenance)):
            _check_text(name, value)

    def identified_by(self) -> Mapping[str, Any]:
        """Returns what identifies it, θ by its content."""
        theta = identity.of_arrays(self.theta)
        about = identity.digest(identity.of(dict(self.provenance)))
        fields = {"optimizer": self.optimizer, "theta": theta, "base": self.base}
        return fields | {"provenance": about}

    def as_optax(
        self, specs: Specs, num_steps: int
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer for parameters with these specs.

        Args:
            specs: as from `parametrization.infer_specs`.
            num_steps: length of the run, which schedules follow; an array may be
                traced.

        Raises:
            ValueError: if `num_steps` is no whole number above 0.
        """
        whole = type(num_steps) is int and num_steps > 0
        if not whole and not hasattr(num_steps, "dtype"):
            raise ValueError(
                f"num_steps = {num_steps!r:.80} must be a whole number above 0, the "
                "length of the run"
            )
        return self.optimizer.as_optax(self.theta, specs, num_steps)

    def save(self, folder: str | Path, *, replace: bool = False) -> None:
        """Writes the folder.

        Args:
            folder: must not exist, unless `replace`.
            replace: whether an existing artifact is replaced once this one is complete.

        Raises:
            FileExistsError: if the folder exists and `replace` is False.
            OSError: if it cannot be written; an existing artifact stays.
            ValueError: if θ is not finite or does not fit the optimizer, or if the
                optimizer's class is not registered.
        """
        tensors = weights.check_theta(self.optimizer, self.theta)
        if pylo_form.can_hold(self.optimizer):
            tensors = pylo_form.to_tensors(self.optimizer, self.theta)
        config = json.dumps(self._config(), indent=2, allow_nan=False)

        write_folder(Path(folder), tensors, config + "\n", replace)

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Reads and verifies a folder.

        Raises:
            ValueError: naming the file that is missing, damaged or unreadable.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder of a released optimizer")
        if not (folder / WEIGHTS).exists():
            raise ValueError(
                f"{folder / WEIGHTS} is missing: the folder is no released optimizer, "
                "or incomplete; a training run, but no checkpoint of it, becomes one "
                "by `python -m experiments.export RUN_DIR OUT_DIR`"
            )
        before = _verified(folder)
        config = weights.read_json(folder / CONFIG)
        _check_version(config, folder / CONFIG)
        try:
            artifact = cls._from_config(config, folder / WEIGHTS)
        except _NOT_UNDERSTOOD as error:
            message = str(error)
            if str(folder) in message:
                raise ValueError(message) from None
            what = f"{error!r}" if isinstance(error, KeyError) else message
            raise ValueError(
                f"{folder / CONFIG} does not describe an optimizer: {what}"
            ) from None
        # Else it could be the configuration of one and the weights of another.
        if _verified(folder) != before:
            raise ValueError(f"{folder} was replaced while it was read; load it again")
        return artifact

    def _config(self) -> dict[str, Any]:
        lopt, provenance = self.optimizer, dict(self.provenance)
        if pylo_form.can_hold(lopt):
            config = pylo_form.to_config(lopt, self.theta, self.base)
            pylo = config.pop("pylo")
            # PyLO's keys first, the `pylo` block last.
            sizes = {key: config.pop(key) for key in tuple(config)[:3]}
            return {
                **sizes,
                "schema_version": pylo_form.schema_version(lopt),
                **config,
                "provenance": provenance,
                "pylo": pylo,
            }
        if registry.KINDS.get(type(lopt).__name__) is not type(lopt):
            raise ValueError(
                f"{type(lopt).__name__} is not in lopt.registry: no reader knows it"
            )
        lopt = with_execution(lopt, **vars(Execution()))  # no property of θ
        encoded = encoding.encode(lopt, registry.KINDS)
        # Reading it back finds a field of a wrong type.
        _decode_optimizer({"optimizer": encoded})
        return {
            "schema_version": GENERAL_SCHEMA,
            "optimizer": encoded,
            "base": dict(self.base),
            "provenance": provenance,
        }

    @classmethod
    def _from_config(cls, config: dict[str, Any], path: Path) -> Artifact:
        if config["schema_version"] in PYLO_SCHEMAS:
            stored = config["optimizer"]
            optimizer: Any = pylo_form.from_config(config)
            theta = pylo_form.from_files(optimizer, stored, path)
            base = stored["base"]
        else:
            optimizer = _decode_optimizer(config)
            tensors = weights.read(path)
            weights.check(tensors, weights.expected_shapes(optimizer), path)
            theta, base = weights.as_theta(tensors), config["base"]
        for name, value in (("base", base), ("provenance", config["provenance"])):
            if not isinstance(value, dict):
                raise ValueError(f"{name} = {value!r} must be an object")
        return cls(optimizer, theta, base, config["provenance"])


def _limit(name: str) -> int:
    return TEXT_LIMIT if name == CONFIG else WEIGHTS_LIMIT


def _verified(folder: Path) -> bytes:
    """Returns the checksums of a folder, with which its files agree."""
    try:
        verify_sums(folder, (WEIGHTS, CONFIG), _limit)
        return read_bytes(folder / SUMS)
    except OSError as error:
        where = error.filename or folder
        raise ValueError(f"{where} cannot be read: {error.strerror}") from None


def write_folder(folder: Path, tensors: Tensors, config: str, replace: bool) -> None:
    """Writes config.json and the weights, atomically (errors as `Artifact.save`)."""

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary / WEIGHTS)
        # Raised on a full disk, too.
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(folder)) from error
        (temporary / CONFIG).write_text(config, encoding="utf-8")

    publish(folder, write, replace=replace)


def _decode_optimizer(config: dict[str, Any]) -> AnyLearned:
    optimizer = encoding.decode_kind(config["optimizer"], "optimizer", registry.KINDS)
    if not isinstance(optimizer, registry.LEARNED):
        raise ValueError(
            f"optimizer.kind = {type(optimizer).__name__!r} is no learned optimizer"
        )
    return optimizer


def _check_text(name: str, value: Any) -> None:
    """Checks every text of JSON (see `encodable`)."""
    if isinstance(value, str):
        encodable(name, value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_text(f"a key of {name}", key)
            _check_text(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_text(f"{name}[{index}]", inner)


def _check_version(config: Mapping[str, Any], path: Path) -> None:
    version = config.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(f"{path} has no schema_version: {version!r}")
    known = sorted((*PYLO_SCHEMAS, GENERAL_SCHEMA))
    if version not in known:
        raise ValueError(
            f"{path} has schema_version {version}; this version reads {known}"
        )
