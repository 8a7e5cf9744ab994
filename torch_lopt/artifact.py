"""Reads and verifies an artifact folder.

It holds `config.json`, `model.safetensors` and `SHA256SUMS`. All contents are checked
first; every error is a `ValueError` of one line that names the file. Nothing is
unpickled.
"""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import safetensors
import safetensors.torch
import torch

from torch_lopt.rule import TIME_SCALES, Epsilons, SmallFC

TENSOR_SCHEMA, MATRIX_SCHEMA = 1, 3
SCHEMAS = (TENSOR_SCHEMA, MATRIX_SCHEMA)
"""Both hold small_fc_lopt; only the third names `factored_axes`, "tensor" before."""
CONFIG, MODEL, SUMS = "config.json", "model.safetensors", "SHA256SUMS"
TEXT_LIMIT, WEIGHTS_LIMIT = 16 * 2**20, 2**30
"""Most bytes of `config.json` and `SHA256SUMS`, and of any other file."""


class Artifact(NamedTuple):
    """A learned optimizer: its hyperparameters and its network's float32 weights."""

    rule: SmallFC
    weights: dict[str, torch.Tensor]


def load_artifact(folder: str | os.PathLike[str]) -> Artifact:
    """Loads an artifact folder.

    Args:
        folder: with `config.json`, `model.safetensors` and `SHA256SUMS`.

    Returns:
        The rule and the weights, on the CPU.

    Raises:
        ValueError: if a file is missing or damaged, or says something this version does
            not understand.
    """
    folder = Path(folder)
    files = _verified_files(folder)
    rule = _parse_rule(folder / CONFIG, files[CONFIG])
    return Artifact(rule, _parse_weights(folder / MODEL, files[MODEL], rule))


def _refuse(path: Path, reason: object) -> NoReturn:
    raise ValueError(f"{path}: {' '.join(str(reason).split())}")


def _read(path: Path, limit: int) -> bytes:
    """Reads a regular file: a FIFO would be waited for, and a device never ends."""
    try:
        # Before it is opened, since that alone may act on a device.
        if not stat.S_ISREG(path.stat().st_mode):
            _refuse(path, "is not a file")
        # Not blocking: a FIFO may have taken its place.
        flags = getattr(os, "O_NONBLOCK", 0)
        with open(path, "rb", opener=lambda name, f: os.open(name, f | flags)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                _refuse(path, "is not a file")
            if found.st_size > limit:
                _refuse(
                    path, f"has {found.st_size:,} bytes, at most {limit:,} are read"
                )
            return file.read(found.st_size)
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})")


def _read_sums(path: Path) -> dict[str, str]:
    """Returns the listed checksums by name, of files below the same folder."""
    text = _decode(path, _read(path, TEXT_LIMIT))
    sums: dict[str, str] = {}
    *lines, rest = text.split("\n")
    for line in lines:
        digest, _, name = line.partition("  ")
        whole = len(digest) == 64 and name and "\0" not in name and name not in sums
        if not whole or Path(name).is_absolute() or ".." in name:
            _refuse(path, f"is damaged at the line {line!r:.100}")
        sums[name] = digest
    if rest:
        _refuse(path, f"is cut off at the line {rest!r:.100}")
    for name in (CONFIG, MODEL):
        if name not in sums:
            _refuse(path, f"has no checksum for {name}")
    return sums


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        _refuse(path, "is not UTF-8")


def _verified_files(folder: Path) -> dict[str, bytes]:
    """Returns the contents of both files; all that are listed match `SHA256SUMS`."""
    files: dict[str, bytes] = {}
    for name, digest in _read_sums(folder / SUMS).items():
        limit = TEXT_LIMIT if name == CONFIG else WEIGHTS_LIMIT
        data = _read(folder / name, limit)
        if hashlib.sha256(data).hexdigest() != digest:
            _refuse(folder / name, f"does not match its checksum in {SUMS}")
        if name in (CONFIG, MODEL):
            files[name] = data
    return files


def _parse_rule(path: Path, data: bytes) -> SmallFC:
    text = _decode(path, data)

    def not_json(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        config = json.loads(text, parse_constant=not_json)
        return _rule_from(config)
    except KeyError as error:
        _refuse(path, f"lacks {error.args[0]!r}")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        _refuse(path, error)


def _rule_from(config: Any) -> SmallFC:
    version = _integer(_block(config, "the file"), "schema_version")
    if version not in SCHEMAS:
        raise ValueError(
            f"schema_version {version} is not one of {SCHEMAS}, which this version of "
            "torch_lopt reads: it runs small_fc_lopt (μLO) alone"
        )
    block = _block(config["optimizer"], "optimizer")
    if block["class"] != "SmallFC":
        raise ValueError(f"unknown optimizer class {block['class']!r}, not 'SmallFC'")
    axes = block["factored_axes"] if version == MATRIX_SCHEMA else "tensor"
    if block.get("factored_axes", axes) != axes:
        raise ValueError(
            f"factored_axes is {block['factored_axes']!r}, but with schema_version "
            f"{version} must be absent or {axes!r}: export the optimizer again"
        )
    decays = {
        f"{kind}_{what}": _numbers(block, f"{kind}_{what}")
        for kind in ("momentum", "rms", "adafactor")
        for what in ("decays", "offsets")
    }
    rule = SmallFC(
        hidden_size=_integer(block, "hidden_size"),
        hidden_layers=_integer(block, "hidden_layers"),
        step_mult=_number(block, "step_mult"),
        exp_mult=_number(block, "exp_mult"),
        epsilons=_epsilons(_block(block["epsilons"], "epsilons")),
        time_scales=_numbers(block, "time_scales"),
        rules=block["rules"],
        factored_axes=axes,
        **decays,
    )
    _check_consistent(config, block, rule)
    return rule


def _check_consistent(
    config: Mapping[str, Any], block: Mapping[str, Any], rule: SmallFC
) -> None:
    """Checks the entries that the file holds twice."""
    if rule.time_scales != TIME_SCALES:
        raise ValueError("the time_scales are not those of this version")
    if block["features"] != list(rule.feature_names):
        raise ValueError("the features are not those of this version, in its order")
    outer = {
        "input_size": rule.input_size,
        "hidden_size": rule.hidden_size,
        "hidden_layers": rule.hidden_layers - 1,
    }
    for key, value in outer.items():
        if config[key] != value:
            raise ValueError(f"{key} is {config[key]}, but its optimizer needs {value}")

    _block(config["provenance"], "provenance")
    base = _block(block["base"], "base")
    for key in base:
        if _integer(base, key) < 1:
            raise ValueError(f"base.{key} must be >= 1, is {base[key]}")


def _epsilons(block: Mapping[str, Any]) -> Epsilons:
    names = [field.name for field in dataclasses.fields(Epsilons)]
    if unknown := sorted(set(block) - set(names)):
        raise ValueError(f"unknown epsilons {unknown}")
    return Epsilons(**{name: _number(block, name) for name in names})


def _block(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} is not a JSON object")
    return value


def _integer(block: Mapping[str, Any], key: str) -> int:
    value = block[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key} must be an integer, is {value!r}")
    return value


def _number(block: Mapping[str, Any], key: str) -> float:
    value = block[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key} must be a number, is {value!r}")
    return float(value)


def _numbers(block: Mapping[str, Any], key: str) -> tuple[float, ...]:
    if not isinstance(block[key], list):
        raise TypeError(f"{key} must be a list of numbers, is {block[key]!r}")
    return tuple(_number({key: item}, key) for item in block[key])


def _parse_weights(path: Path, data: bytes, rule: SmallFC) -> dict[str, torch.Tensor]:
    try:
        weights = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        _refuse(path, f"is no safetensors file ({error})")
    check_weights(weights, rule, prefix=f"{path}: ")
    return weights


def check_weights(
    weights: Mapping[str, torch.Tensor], rule: SmallFC, prefix: str = ""
) -> None:
    """Checks names, shapes, dtype and finiteness of a network's weights."""
    shapes = rule.weight_shapes
    if set(weights) != set(shapes):
        missing = sorted(set(shapes) - set(weights))
        extra = sorted(set(weights) - set(shapes))
        raise ValueError(f"{prefix}tensors missing {missing}, unexpected {extra}")
    for name, shape in shapes.items():
        tensor = weights[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ValueError(
                f"{prefix}tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, must "
                f"be torch.float32 {shape}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{prefix}tensor {name} is not finite")
