"""Registry of tasks, models and sources of data, and of the named families.

Run directories, artifacts and command lines know the classes of `KINDS` by their names,
and the families of `NAMED`. To add a task of this package, add its class to `TASKS`,
and one small task to `FAMILIES` to name it on command lines. Code outside of the
package calls `register` before it calls a command.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from configuration import encoding
from configuration.fields import (
    alternatives,
    entry_types,
    field_types,
    is_class,
    shown,
    unmarked,
)
from tasks.autoencoding import Autoencoding
from tasks.base import BaseTask, Task
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
from tasks.generation.pretraining import Pretraining
from tasks.generation.prior import SemanticPrior
from tasks.generation.vector_quantization import VectorQuantization
from tasks.groups import TaskDistribution
from tasks.language_modelling import LanguageModelling
from tasks.models.autoencoder import VAE, AutoEncoder
from tasks.models.base import Model
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
from tasks.synthetic.quadratics import NoisyQuadratic, Quadratic
from tasks.synthetic.valley import Valley

TASKS: tuple[type, ...] = (
    *(ImageClassification, LanguageModelling, Autoencoding, RandomTeacher),
    *(Quadratic, NoisyQuadratic, Valley, GradedDiagnosis),
    *(VectorQuantization, LatentDiffusion, SemanticPrior, TaskDistribution),
)
MODELS: tuple[type, ...] = (
    *(MLP, ConvNet, ResNet, ViT, Transformer, Recurrent, AutoEncoder, VAE),
    *(VQAutoEncoder, LatentDenoiser, CodePrior),
)
SOURCES: tuple[type, ...] = (
    *(Digits, Signals, TFDSImages, StandardLibrary, TFDSText, Bytes, BytePairs),
    *(Speckle, Resized, Shapes),
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A named task, made when it is asked for."""

    description: str
    """One line for a list."""
    task: Callable[[], BaseTask]
    """Makes the task."""
    residual: bool = False
    """Whether it has residual branches, so that its depth can grow in CompleteP."""


def _images(model: Model, batch_size: int = 64) -> ImageClassification:
    return ImageClassification(model, batch_size=batch_size)


def _text(model: Model) -> LanguageModelling:
    # Few tokens: of many random ones, little of a step is aligned with each, and at
    # small widths noise of order 1/√width stands beside what is aligned.
    return LanguageModelling(model, StandardLibrary(), length=8, batch_size=4)


def _codes(model: Model) -> Autoencoding:
    return Autoencoding(model, batch_size=64, reconstruction="bernoulli")


def _stage_a() -> VectorQuantization:
    # So dense a codebook that what the decoder sees is nearly continuous.
    model = VQAutoEncoder(32, 1, latent_channels=2, base_width=32, base_depth=1)
    return VectorQuantization(model, Shapes(num_train=1000, num_test=200), 4)


def _stage_b() -> LatentDiffusion:
    # A code starts at 0. What it is first told to change is of order 1/√width, beside a
    # step's effect; with two channels the former is larger at all widths of the checks.
    model = LatentDenoiser(32, 1, code_channels=2, base_width=32, base_depth=1)
    return LatentDiffusion(model, _stage_a(), Pretraining(200), batch_size=4)


def _stage_c() -> SemanticPrior:
    model = CodePrior(width=32, base_width=32, depth=2, base_depth=2)
    return SemanticPrior(model, _stage_b(), Pretraining(200), batch_size=16)


FAMILIES: dict[str, Family] = {
    "mlp": Family(
        "MLP of 3 hidden layers on 8×8 digits",
        lambda: _images(MLP((32, 32, 32), base_width=32)),
    ),
    "mlp_norm": Family(
        "the same with layer norm",
        lambda: _images(MLP((32, 32, 32), base_width=32, layer_norm=True)),
    ),
    "convnet": Family(
        "strided 3×3 convolutions on 8×8 digits",
        lambda: _images(ConvNet(width=32, base_width=32), batch_size=16),
    ),
    "resnet": Family(
        "pre-activation ResNet of 2 stages on 8×8 digits",
        lambda: _images(
            ResNet(blocks=(1, 1), width=32, base_width=32, base_depth=2), batch_size=16
        ),
        residual=True,
    ),
    "vit": Family(
        "Vision Transformer with 4×4 patches on 8×8 digits",
        lambda: _images(ViT(width=32, base_width=32, patch=4, scan=True), batch_size=4),
        residual=True,
    ),
    "transformer": Family(
        "decoder-only transformer on the bytes of Python's standard library",
        lambda: _text(Transformer(width=32, base_width=32)),
        residual=True,
    ),
    "transformer_tied": Family(
        "the same with rotary positions, scanned layers and a tied readout",
        lambda: _text(
            Transformer(
                width=32, base_width=32, positions="rotary", readout="tied", scan=True
            )
        ),
        residual=True,
    ),
    "lstm": Family(
        "LSTM language model on the same text",
        lambda: _text(Recurrent("lstm", width=32, base_width=32)),
    ),
    "gru": Family(
        "GRU language model on the same text",
        lambda: _text(Recurrent("gru", width=32, base_width=32)),
    ),
    "autoencoder": Family(
        "MLP autoencoder of 8×8 digits",
        lambda: _codes(AutoEncoder(width=32, base_width=32)),
    ),
    "vae": Family(
        "variational autoencoder of 8×8 digits",
        lambda: _codes(VAE(width=32, base_width=32)),
    ),
    "signals": Family(
        "MLP on procedurally made signals, a one-dimensional analogue of MNIST",
        lambda: ImageClassification(MLP((32, 32)), Signals(), batch_size=64),
    ),
    "teacher": Family(
        "MLP that learns from a random teacher",
        lambda: RandomTeacher(MLP((32, 32), base_width=32)),
    ),
    "quadratic": Family("a quadratic with a chosen spectrum", Quadratic),
    "noisy_quadratic": Family("a quadratic whose minimum is noisy", NoisyQuadratic),
    "valley": Family("a curved valley", Valley),
    "diagnosis": Family(
        "strided convolutions that grade speckle images like ultrasound",
        lambda: GradedDiagnosis(
            ConvNet(width=32, multipliers=(1, 1), strides=(2, 2)),
            Speckle(size=16, num_train=100, num_test=40),
            batch_size=8,
        ),
    ),
    "vq": Family(
        "stage A of text-to-image: autoencoder of 32×32 shapes with a codebook",
        _stage_a,
        residual=True,
    ),
    "latent_diffusion": Family(
        "stage B: noise in the latents of a hardly trained stage A, given a code",
        _stage_b,
        residual=True,
    ),
    "prior": Family(
        "stage C: noise in the codes of a hardly trained stage B, given the class",
        _stage_c,
        residual=True,
    ),
}
"""One small task of every family: for checks, benchmarks and command lines."""

PREPARED: dict[str, Family] = {
    "tfds_images": Family(
        "MLP on a prepared TFDS dataset, MNIST unless --task.data.name says another",
        lambda: ImageClassification(MLP((128, 128), base_width=32), TFDSImages()),
    ),
    "tfds_resnet": Family(
        "ResNet on the same",
        lambda: ImageClassification(ResNet(), TFDSImages(), batch_size=32),
    ),
    "tfds_vit": Family(
        "Vision Transformer with 4×4 patches on the same",
        lambda: ImageClassification(ViT(base_width=32, scan=True), TFDSImages()),
    ),
    "tfds_vae": Family(
        "variational autoencoder of the same",
        lambda: Autoencoding(VAE(width=64), TFDSImages(), reconstruction="bernoulli"),
    ),
    "tfds_text": Family(
        "transformer on a prepared TFDS text, tiny_shakespeare unless --task.data.name",
        lambda: LanguageModelling(
            Transformer(width=64, base_width=32), TFDSText(), length=64, batch_size=32
        ),
    ),
    "tfds_lstm": Family(
        "LSTM on the same text",
        lambda: LanguageModelling(
            Recurrent("lstm", base_width=32), TFDSText(), length=64, batch_size=32
        ),
    ),
}
"""Families on data that must first be prepared on a machine."""

KINDS: dict[str, type] = encoding.kinds_of(*TASKS, *MODELS, *SOURCES)
"""Classes by the `kind` in a stored configuration; changed by `register` alone."""

NAMED: dict[str, Family] = FAMILIES | PREPARED
"""Families by their names on command lines; changed by `register` alone."""

_RESERVED: dict[str, str] = {}
"""Names that no family or class may have, with what has them."""
_ADDED_KINDS: set[str] = set()
_ADDED_FAMILIES: set[str] = set()


def reserve(owner: str, names: Iterable[str]) -> None:
    """Keeps names from families and classes that other packages register.

    Args:
        owner: what has the names, such as "a suite"; for messages.
        names: names on command lines or in stored configurations.

    Raises:
        ValueError: if one of them was registered before.
    """
    taken = dict.fromkeys(names, owner)
    _check_free(_ADDED_KINDS | _ADDED_FAMILIES, taken)
    _RESERVED.update(taken)


def _check_free(names: Iterable[str], taken: Mapping[str, str]) -> None:
    for name in names:
        if owner := taken.get(name):
            raise ValueError(f"{name!r} is the name of {owner}: choose another name")


def register(*classes: type, **families: Family) -> None:
    """Adds classes that configurations can hold, and families that have a name.

    Args:
        *classes: frozen dataclasses: tasks that derive from `BaseTask`, models from
            `Model`, sources of data from `Source`.
        **families: by their names on command lines.

    Raises:
        ValueError: if a name is taken, or a class is no dataclass.
    """
    for kind in classes:
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            name = getattr(kind, "__name__", shown(kind))
            raise ValueError(f"{name} must be a dataclass to be registered")
    kinds = encoding.kinds_of(*classes)
    for name in [*(kinds.keys() & KINDS.keys()), *(families.keys() & NAMED.keys())]:
        raise ValueError(f"{name!r} is registered already: choose another name")
    _check_free([*kinds, *families], _RESERVED)
    KINDS.update(kinds)
    NAMED.update(families)
    _ADDED_KINDS.update(kinds)
    _ADDED_FAMILIES.update(families)


def unregister(*names: str) -> None:
    """Removes classes and families that `register` added, by their names.

    Raises:
        ValueError: if `register` did not add one of them; then all stay.
    """
    for name in names:
        if name not in _ADDED_KINDS | _ADDED_FAMILIES:
            raise ValueError(
                f"{name!r} cannot be removed: only what register added can be"
            )
    for name in names:
        for added, entries in ((_ADDED_KINDS, KINDS), (_ADDED_FAMILIES, NAMED)):
            if name in added:
                added.discard(name)
                del entries[name]


def check_registered(task: Task) -> None:
    """Raises ValueError if a stored configuration could not name a class in the task.

    The classes are those of the task and of every configuration in its fields: models,
    sources of data, tokenizers, tasks of earlier stages.
    """
    _check_registered("task", task, Task)


def _check_registered(where: str, value: Any, hint: Any) -> None:
    kind = type(value)
    derives = any(encoding.is_kind(base, KINDS) for base in kind.__mro__)
    # A field of one class only is read without a kind.
    readable = not derives and _only_class(hint) is kind
    if not (encoding.is_kind(kind, KINDS) or readable):
        raise ValueError(
            f"{where} = {shown(value)} is of a class that configurations do not know; "
            f"tasks.registry.register({kind.__name__}) adds it"
        )
    hints = field_types(kind)
    for field in dataclasses.fields(typing.cast(Any, kind)):
        inner, hint = getattr(value, field.name), hints.get(field.name, Any)
        for part, item, item_hint in _parts(field.name, inner, hint):
            if dataclasses.is_dataclass(item):
                _check_registered(f"{where}.{part}", item, item_hint)


def _parts(name: str, value: Any, hint: Any) -> list[tuple[str, Any, Any]]:
    """Returns a field's value, or the entries of a tuple, with name and annotation."""
    if not isinstance(value, tuple):
        return [(name, value, hint)]
    unions = [entry_types(inner, value) for inner in _alternatives(hint)]
    hints = next((found for found in unions if found), (Any,) * len(value))
    return [
        part
        for i, (item, inner) in enumerate(zip(value, hints, strict=True))
        for part in _parts(f"{name}[{i}]", item, inner)
    ]


def _alternatives(hint: Any) -> list[Any]:
    return [unmarked(inner)[0] for inner in alternatives(unmarked(hint)[0])]


def _only_class(hint: Any) -> Any:
    """Returns the only class that the annotation allows, or None."""
    classes = [inner for inner in _alternatives(hint) if is_class(inner)]
    return classes[0] if len(classes) == 1 else None
