"""What a table says about a task: names, units, and whether its data is at hand.

Everything here is known without reading data; what only a disk knows is said to be
missing where the disk has not got it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tasks.autoencoding import Autoencoding, Pairs
from tasks.base import Batch, Task
from tasks.classification import ImageClassification
from tasks.data import prepared
from tasks.data.images import ImageSplit
from tasks.data.resized import Resized
from tasks.data.standard_library import StandardLibrary
from tasks.data.text import TextBatch
from tasks.data.tfds_images import TFDSImages
from tasks.data.tfds_text import TFDSText
from tasks.diagnosis import GradedBatch, GradedDiagnosis
from tasks.generation.latent_diffusion import LatentBatch, LatentDiffusion
from tasks.generation.prior import SemanticPrior
from tasks.generation.vector_quantization import Reconstructions, VectorQuantization
from tasks.language_modelling import LanguageModelling
from tasks.modelled import ModelTask
from tasks.models.autoencoder import VAE
from tasks.models.vq_autoencoder import COMPRESSION
from tasks.regression import Examples, RandomTeacher
from tasks.synthetic.base import Landscape

NATS = "nats"


def family(task: Task) -> str:
    """The class of the model, or of the task itself where it has none."""
    return type(task.model if isinstance(task, ModelTask) else task).__name__


def unit(task: Task) -> str:
    """The unit of the loss.

    A squared error is in squared deviations (of a channel, of a target): a variance of
    1 is what a constant guess leaves. A `VAE` adds a divergence in nats to it, so all
    of its loss is a negative log-likelihood.
    """
    match task:
        case LanguageModelling():
            return "nats per token"
        case Autoencoding(model=VAE()) | Autoencoding(reconstruction="bernoulli"):
            return "nats per pixel"
        case Autoencoding() | RandomTeacher() | VectorQuantization():
            return "squared deviations"
        case LatentDiffusion() | SemanticPrior():
            return "squared deviations of the noise, weighted"
        case GradedDiagnosis():
            return "nats per dichotomy"
        case Landscape():
            return "units of the height"
    return NATS


def data(task: Task) -> str:
    """The name of the data."""
    source = getattr(task, "data", None)
    if isinstance(source, Resized):
        source = source.data
    if isinstance(source, TFDSImages):
        return f"{source.name}, grey" if source.grey else source.name
    if source is not None:
        return getattr(source, "name", type(source).__name__)
    return "made in-graph" if isinstance(task, RandomTeacher) else "none"


def resolution(task: Task) -> str:
    """The size of one input.

    Raises:
        ValueError: in one line, if only a disk knows it and has not got the data.
    """
    match task:
        case ImageClassification() | Autoencoding() | GradedDiagnosis():
            return "×".join(map(str, task.data.image_shape))
        case VectorQuantization() | LatentDiffusion() | SemanticPrior():
            return "×".join(map(str, task.input_shape))
        case LanguageModelling():
            return f"{task.length} of {task.num_outputs:,} tokens"
        case RandomTeacher():
            return f"{task.num_inputs} inputs"
        case Landscape():
            return f"{task.dimension} coordinates"
    return "–"


def undescribed(task: Task) -> str | None:
    """Why the shapes of a task are not known on this machine; None if they are."""
    if not isinstance(task, ModelTask):
        return None
    try:
        _ = task.input_shape, task.num_outputs
    except ValueError as error:
        return str(error)
    return None


def missing_data(task: Task) -> str | None:
    """Why the data of a task cannot be read here; None if it is declared to be there.

    Shards are not opened: whether they are whole shows when the data is loaded.
    """
    source = getattr(task, "data", None)
    if not isinstance(source, TFDSImages | TFDSText):
        return None
    try:
        prepared.open_dataset(source.name)
    except ValueError as error:
        return str(error)
    return None


def fingerprint(task: Task) -> str | None:
    """What tells apart two contents of data of one name; None if there is one content.

    Raises:
        ValueError: if the data is missing.
    """
    match getattr(task, "data", None):
        case TFDSImages(name=name) | TFDSText(name=name):
            declared = sorted(prepared.open_dataset(name).fingerprint.items())
            return repr(declared)
        case StandardLibrary() as library:
            return library.fingerprint()
    return None


def batch_shapes(task: Task) -> Batch:
    """One training batch as `ShapeDtypeStruct`, without data.

    Raises:
        ValueError: in one line, if only a disk knows the shapes.
    """

    def shaped(*shape: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Batch:
        return jax.ShapeDtypeStruct(shape, dtype)

    match task:
        case ImageClassification():
            images = shaped(task.batch_size, *task.input_shape)
            return ImageSplit(images, shaped(task.batch_size, dtype=jnp.int32))
        case GradedDiagnosis():
            images = shaped(task.batch_size, *task.input_shape)
            labels = shaped(task.batch_size, dtype=jnp.int32)
            prior = shaped(task.batch_size, task.num_outputs)
            return GradedBatch(images, labels, prior)
        case VectorQuantization():
            images = shaped(task.batch_size, *task.input_shape)
            return Reconstructions(images, images)
        case LatentDiffusion():
            height, width, _ = task.input_shape
            latents = (height // COMPRESSION, width // COMPRESSION, task.num_outputs)
            images = shaped(task.batch_size, *task.input_shape)
            return LatentBatch(images, shaped(task.batch_size, *latents))
        case SemanticPrior():
            codes = shaped(task.batch_size, *task.input_shape)
            return ImageSplit(codes, shaped(task.batch_size, dtype=jnp.int32))
        case Autoencoding():
            inputs = shaped(task.batch_size, *task.input_shape)
            targets = shaped(task.batch_size, task.num_outputs)
            return Pairs(inputs, targets, shaped(task.num_outputs))
        case LanguageModelling():
            tokens = shaped(task.batch_size, task.length, dtype=jnp.int32)
            return TextBatch(tokens, tokens)
        case RandomTeacher():
            inputs = shaped(task.batch_size, task.num_inputs)
            return Examples(inputs, shaped(task.batch_size, task.num_targets))

    def draw(key: jax.Array) -> Batch:
        dataset = task.load_data()  # made from a few numbers
        draws = task.draw(dataset, key, "train", 1)
        return task.batch(dataset, jax.tree.map(lambda x: x[0], draws), "train")

    return jax.eval_shape(draw, jax.eval_shape(lambda: jax.random.key(0)))
