"""Configurations as JSON (see `configuration.encoding`), and their differences."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from configuration import encoding
from lopt.release import registry
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.es import EvolutionStrategy
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
from tasks.synthetic.quadratics import NoisyQuadratic, Quadratic
from tasks.synthetic.valley import Valley

T = TypeVar("T")

COMPONENTS = encoding.kinds_of(
    *(
        *(ImageClassification, LanguageModelling, Autoencoding, RandomTeacher),
        *(Quadratic, NoisyQuadratic, Valley),
        *(MLP, ConvNet, ResNet, ViT, Transformer, Recurrent, AutoEncoder, VAE),
        *(Digits, Signals, TFDSImages, StandardLibrary, TFDSText, Bytes, BytePairs),
        TaskDistribution,
        *(GradedDiagnosis, Speckle),
        Resized,
        *(VectorQuantization, LatentDiffusion, SemanticPrior),
        *(VQAutoEncoder, LatentDenoiser, CodePrior, Shapes),
        *(EvolutionStrategy, Backpropagation),
    ),
    *registry.KINDS.values(),
)
"""Dataclasses that fields of abstract types may hold, by their `kind` in JSON."""


def encode(value: Any) -> Any:
    """Returns a configuration as JSON values."""
    return encoding.encode(value, COMPONENTS)


def decode(kind: type[T], data: Any, where: str = "config") -> T:
    """Rebuilds a configuration from JSON values.

    Raises:
        ValueError: naming the field that is unknown, missing or of a wrong type.
    """
    return encoding.decode(kind, data, where, COMPONENTS)


def identity(config: dict[str, Any]) -> str:
    """Returns a digest of everything that a run's results depend on.

    Args:
        config: the encoded configuration of the run. How it is run, and for how many
            outer steps, does not count.
    """
    counts = {k: v for k, v in config.items() if k not in ("run", "num_steps")}
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested JSON objects by dotted path."""
    if not isinstance(data, dict):
        return {prefix: data}
    leaves: dict[str, Any] = {}
    for name, value in data.items():
        leaves |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return leaves


def differences(stored: Any, wanted: Any) -> list[str]:
    """Returns `field: stored value -> wanted value` for every leaf that differs."""
    left, right = flatten(stored), flatten(wanted)
    pairs = {n: (left.get(n, "absent"), right.get(n, "absent")) for n in left | right}
    return [
        f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if old != new
    ]
