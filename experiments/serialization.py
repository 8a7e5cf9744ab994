"""Configurations as JSON, and what differs between two of them.

Plain nested objects: dataclasses by field, enums by name, tuples as lists; where a
field may hold one of several components, `kind` says which. The reader is strict: an
unknown or a missing field is an error that names it.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from lopt.schedules import (
    Constant,
    InfiniteSchedule,
    WarmupCosine,
    WarmupStableDecay,
)
from tasks.autoencoding import Autoencoding
from tasks.classification import ImageClassification
from tasks.data.embedded import Digits
from tasks.data.resized import Resized
from tasks.data.shapes import Shapes
from tasks.data.signals import Signals
from tasks.data.speckle import Speckle
from tasks.data.standard_library import StandardLibrary
from tasks.data.tfds_images import TFDSImages
from tasks.data.tfds_text import TFDSText
from tasks.data.tokenizers import BytePairs, Bytes
from tasks.diagnosis import GradedDiagnosis
from tasks.generation.latent_diffusion import LatentDiffusion
from tasks.generation.prior import SemanticPrior
from tasks.generation.vector_quantization import VectorQuantization
from tasks.groups import TaskDistribution
from tasks.language_modelling import LanguageModelling
from tasks.models.autoencoder import VAE, AutoEncoder
from tasks.models.code_prior import CodePrior
from tasks.models.convolutional import ConvNet
from tasks.models.latent_denoiser import LatentDenoiser
from tasks.models.mlp import MLP
from tasks.models.recurrent import Recurrent
from tasks.models.resnet import ResNet
from tasks.models.transformer import Transformer
from tasks.models.vit import ViT
from tasks.models.vq_autoencoder import VQAutoEncoder
from tasks.regression import RandomTeacher
from tasks.synthetic import NoisyQuadratic, Quadratic
from tasks.valley import Valley

T = TypeVar("T")

COMPONENTS: dict[str, type] = {
    component.__name__: component
    for component in (
        *(ImageClassification, LanguageModelling, Autoencoding, RandomTeacher),
        *(Quadratic, NoisyQuadratic, Valley),
        *(MLP, ConvNet, ResNet, ViT, Transformer, Recurrent, AutoEncoder, VAE),
        *(Digits, Signals, TFDSImages, StandardLibrary, TFDSText, Bytes, BytePairs),
        TaskDistribution,
        *(GradedDiagnosis, Speckle),
        Resized,
        *(VectorQuantization, LatentDiffusion, SemanticPrior),
        *(VQAutoEncoder, LatentDenoiser, CodePrior, Shapes),
        *(Constant, WarmupCosine, WarmupStableDecay, InfiniteSchedule),
    )
}
"""Dataclasses that a field of an abstract type may hold, by the `kind` in the JSON."""


def encode(value: Any) -> Any:
    """A configuration as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        fields = {f.name: encode(getattr(value, f.name)) for f in _fields(value)}
        return {"kind": kind, **fields} if kind in COMPONENTS else fields
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], data: Any, where: str = "config") -> T:
    """Rebuilds a configuration from JSON values.

    Raises:
        ValueError: naming the field that is unknown, missing or of a wrong type.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object with fields, not {data!r}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in _fields(kind)]
    unknown = sorted(data.keys() - set(names))
    if unknown:
        raise ValueError(f"{where}.{unknown[0]} is not a field of {kind.__name__}")
    missing = [name for name in names if name not in data]
    if missing:
        raise ValueError(f"{where}.{missing[0]} is missing")
    values = {n: _decode(hints[n], data[n], f"{where}.{n}") for n in names}
    return kind(**values)


def _fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _decode(hint: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(data, dict) and "kind" in data:
        if data["kind"] not in COMPONENTS:
            raise ValueError(f"{where}.kind = {data['kind']!r} is not known")
        fields = {name: value for name, value in data.items() if name != "kind"}
        return decode(COMPONENTS[data["kind"]], fields, where)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), data, where)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        names = [a for a in inner if typing.get_origin(a) is typing.Literal]
        if names and isinstance(data, str):
            return _decode(names[0], data, where)
        if len(inner) > 1:
            raise ValueError(f"{where} = {data!r} must be an object with a 'kind'")
        return _decode(inner[0], data, where)
    if origin is typing.Literal:
        if data not in arguments:
            raise ValueError(f"{where} = {data!r} must be one of {arguments}")
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} = {data!r} must be a list")
        return tuple(_decode(arguments[0], item, where) for item in data)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if not isinstance(data, str) or data not in hint.__members__:
            raise ValueError(f"{where} = {data!r} must be in {[*hint.__members__]}")
        return hint[data]
    if inspect.isabstract(hint):
        raise ValueError(f"{where} must be an object with a 'kind', not {data!r}")
    if hint is Path and isinstance(data, str):
        return Path(data)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if type(data) is not hint:
        raise ValueError(f"{where} = {data!r} must be of type {hint.__name__}")
    return data


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested JSON objects by dotted path."""
    if not isinstance(data, dict):
        return {prefix: data}
    leaves: dict[str, Any] = {}
    for name, value in data.items():
        leaves |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return leaves


def differences(stored: Any, wanted: Any) -> list[str]:
    """`field: stored value -> wanted value` for every leaf that differs."""
    left, right = flatten(stored), flatten(wanted)
    names = [n for n in left | right if left.get(n, "absent") != right.get(n, "absent")]
    return [
        f"{name}: {left.get(name, 'absent')} -> {right.get(name, 'absent')}"
        for name in names
    ]
