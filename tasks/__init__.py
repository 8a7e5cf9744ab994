"""What is optimized: models and data behind one `Task` interface."""

from tasks.autoencoding import Autoencoding
from tasks.base import Task
from tasks.classification import ImageClassification
from tasks.custom.function_task import FunctionTask
from tasks.data.arrays import Splits
from tasks.data.augmentation import Augmentation
from tasks.data.embedded import Digits
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
from tasks.groups import Group, TaskDistribution, over_widths
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
from tasks.variation import Variation

__all__ = [
    "MLP",
    "VAE",
    "Augmentation",
    "AutoEncoder",
    "Autoencoding",
    "BytePairs",
    "Bytes",
    "CodePrior",
    "ConvNet",
    "Digits",
    "FunctionTask",
    "GradedDiagnosis",
    "Group",
    "ImageClassification",
    "LanguageModelling",
    "LatentDenoiser",
    "LatentDiffusion",
    "NoisyQuadratic",
    "Quadratic",
    "RandomTeacher",
    "Recurrent",
    "ResNet",
    "SemanticPrior",
    "Shapes",
    "Signals",
    "Speckle",
    "Splits",
    "StandardLibrary",
    "TFDSImages",
    "TFDSText",
    "Task",
    "TaskDistribution",
    "Transformer",
    "VQAutoEncoder",
    "Valley",
    "Variation",
    "VectorQuantization",
    "ViT",
    "over_widths",
]
