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
from typing import NamedTuple, NoReturn

import safetensors
import safetensors.torch
import torch

from torch_lopt.config import GENERAL_SCHEMA, rule_from, version_of
from torch_lopt.rule import SmallFC
from torch_lopt.wrappers import Rule, unwrapped, with_innermost

CONFIG, MODEL, SUMS = "config.json", "model.safetensors", "SHA256SUMS"
TEXT_LIMIT, WEIGHTS_LIMIT = 16 * 2**20, 2**30
"""Most bytes of `config.json` and `SHA256SUMS`, and of any other file."""


class Artifact(NamedTuple):
    """A learned optimizer: its hyperparameters and its network's float32 weights."""

    rule: Rule
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
    rule, version = _parse_rule(folder / CONFIG, files[CONFIG])
    tensors = _parse_tensors(folder / MODEL, files[MODEL])
    where = f"{folder / MODEL}: "
    if version == GENERAL_SCHEMA:
        return _from_general(rule, tensors, where)
    check_weights(tensors, unwrapped(rule)[0], where)
    return Artifact(rule, tensors)


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


def _parse_rule(path: Path, data: bytes) -> tuple[Rule, int]:
    """Returns the rule and the schema."""
    text = _decode(path, data)

    def not_json(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        config = json.loads(text, parse_constant=not_json)
        return rule_from(config), version_of(config)
    except KeyError as error:
        _refuse(path, f"lacks {error.args[0]!r}")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        _refuse(path, error)


def _parse_tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        _refuse(path, f"is no safetensors file ({error})")


OFFSETS = {
    "momentum_offsets": "momentum",
    "second_moment_offsets": "rms",
    "factored_offsets": "adafactor",
}
"""Offsets among the tensors of the general schema, and their kind in the rule."""


def _from_general(
    rule: Rule, tensors: Mapping[str, torch.Tensor], where: str
) -> Artifact:
    """Returns the artifact of tensors with the names and the orientation of JAX.

    Those are `layer_i/kernel` [in, out], `layer_i/bias` [out] and the offsets.
    """
    inner, _ = unwrapped(rule)
    names: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (name, shape) in enumerate(inner.weight_shapes.items()):
        general = f"layer_{i // 2}/{'bias' if i % 2 else 'kernel'}"
        names[general], shapes[general] = name, shape[::-1]
    for general, kind in OFFSETS.items():
        shapes[general] = (len(getattr(inner, f"{kind}_decays")),)
    check_tensors(tensors, shapes, where)
    weights = {name: tensors[key].t().contiguous() for key, name in names.items()}
    offsets = {
        f"{kind}_offsets": tuple(tensors[general].tolist())
        for general, kind in OFFSETS.items()
    }
    return Artifact(
        with_innermost(rule, dataclasses.replace(inner, **offsets)), weights
    )


def check_weights(
    weights: Mapping[str, torch.Tensor], rule: SmallFC, prefix: str = ""
) -> None:
    """Checks names, shapes, dtype and finiteness of a network's weights."""
    check_tensors(weights, rule.weight_shapes, prefix)


def check_tensors(
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    prefix: str = "",
) -> None:
    """Checks that there are exactly these tensors, float32 and finite."""
    if set(tensors) != set(shapes):
        missing = sorted(set(shapes) - set(tensors))
        extra = sorted(set(tensors) - set(shapes))
        raise ValueError(f"{prefix}tensors missing {missing}, unexpected {extra}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ValueError(
                f"{prefix}tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, must "
                f"be torch.float32 {shape}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{prefix}tensor {name} is not finite")
