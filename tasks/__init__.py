"""Inner tasks: models and data behind one `Task` interface."""

from tasks.autoencoding import Autoencoding as Autoencoding
from tasks.base import Task as Task
from tasks.classification import ImageClassification as ImageClassification
from tasks.custom.function_task import FunctionTask as FunctionTask
from tasks.data.arrays import Splits as Splits
from tasks.data.augmentation import Augmentation as Augmentation
from tasks.data.embedded import Digits as Digits
from tasks.data.shapes import Shapes as Shapes
from tasks.data.signals import Signals as Signals
from tasks.data.speckle import Speckle as Speckle
from tasks.data.standard_library import StandardLibrary as StandardLibrary
from tasks.data.tfds_images import TFDSImages as TFDSImages
from tasks.data.tfds_text import TFDSText as TFDSText
from tasks.data.tokenizers import BytePairs as BytePairs
from tasks.data.tokenizers import Bytes as Bytes
from tasks.diagnosis import GradedDiagnosis as GradedDiagnosis
from tasks.distributions import DISTRIBUTIONS as DISTRIBUTIONS
from tasks.generation.latent_diffusion import LatentDiffusion as LatentDiffusion
from tasks.generation.prior import SemanticPrior as SemanticPrior
from tasks.generation.vector_quantization import (
    VectorQuantization as VectorQuantization,
)
from tasks.groups import Group as Group
from tasks.groups import TaskDistribution as TaskDistribution
from tasks.groups import over_widths as over_widths
from tasks.language_modelling import LanguageModelling as LanguageModelling
from tasks.models.autoencoder import VAE as VAE
from tasks.models.autoencoder import AutoEncoder as AutoEncoder
from tasks.models.code_prior import CodePrior as CodePrior
from tasks.models.convolutional import ConvNet as ConvNet
from tasks.models.latent_denoiser import LatentDenoiser as LatentDenoiser
from tasks.models.mlp import MLP as MLP
from tasks.models.recurrent import Recurrent as Recurrent
from tasks.models.resnet import ResNet as ResNet
from tasks.models.transformer import Transformer as Transformer
from tasks.models.vit import ViT as ViT
from tasks.models.vq_autoencoder import VQAutoEncoder as VQAutoEncoder
from tasks.regression import RandomTeacher as RandomTeacher
from tasks.suites import SUITES as SUITES
from tasks.synthetic.quadratics import NoisyQuadratic as NoisyQuadratic
from tasks.synthetic.quadratics import Quadratic as Quadratic
from tasks.synthetic.valley import Valley as Valley
from tasks.variation import Variation as Variation
