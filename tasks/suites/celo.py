"""The 17 evaluation tasks of the Celo paper, or the nearest of this package.

Moudgil et al., Celo: Training Versatile Learned Optimizers on a Compute Diet,
arXiv:2501.12670 (TMLR 2025): tasks of the VeLOdrome benchmark (Metz et al.,
arXiv:2211.09760) that none of its optimizers was meta-trained on, 2,000 steps each,
judged by the final loss and by the speed-up over tuned Adam, both as interquartile
means. The paper's text counts the tasks by kind; the names follow a public
transcription of its list that agrees with those counts, and the shapes are those of
google/learned_optimization, `tasks/fixed`.

Cells have the names of the original tasks, and notes say what differs. In every cell
biases start at zero and readouts as LeCun's, since Celo hardly moves a tensor of zeros,
images are normalized, the base width is the network's own (so μP changes nothing until
an optimizer brings another), and the standard parametrization of a baseline is that of
this project.
"""

from __future__ import annotations

import dataclasses

from tasks.autoencoding import Autoencoding
from tasks.base import BaseTask
from tasks.classification import ImageClassification
from tasks.data.tfds_images import TFDSImages
from tasks.data.tfds_text import TFDSText
from tasks.data.tokenizers import BytePairs
from tasks.language_modelling import LanguageModelling
from tasks.models.autoencoder import AutoEncoder
from tasks.models.base import Model
from tasks.models.convolutional import ConvNet
from tasks.models.mlp import MLP
from tasks.models.recurrent import Recurrent
from tasks.models.transformer import Transformer
from tasks.models.vit import ViT
from tasks.regression import RandomTeacher
from tasks.suites.cell import Cell, Suite

HORIZON = 2000

_CIFAR10 = TFDSImages("cifar10")
_CIFAR100 = TFDSImages("cifar100")
_FASHION = TFDSImages("fashion_mnist")
_LM1B = TFDSText("lm1b", BytePairs(32_000))
_WIKIPEDIA = TFDSText("wikipedia/20201201.en", BytePairs(32_000))

_BEFORE = "normalizes before the nonlinearity, theirs after it"
_TOKENS = "32,000 byte pairs of the training split in place of their sentencepiece"
_AUTOENCODER = (
    "a linear bottleneck (theirs has a ReLU), outputs added to the mean image in place "
    "of a sigmoid, squared deviations of normalized pixels"
)
_DECODER = f"{_TOKENS}; learned positions (theirs none); heads share the width, theirs "
_DECODER += "have size 32 each"
_RECURRENT = f"{_TOKENS}; embedding of the width of the cell, 256, theirs 128; the "
_RECURRENT += "first state is zero, theirs is learned"


def _images(model: Model, data: TFDSImages = _CIFAR10) -> ImageClassification:
    return ImageClassification(model, data, batch_size=128)


def _decoder(
    width: int, head_dim: int, depth: int, batch_size: int, length: int
) -> LanguageModelling:
    model = Transformer(
        width=width,
        head_dim=head_dim,
        depth=depth,
        base_width=width,
        base_head_dim=head_dim,
        base_depth=depth,
    )
    return LanguageModelling(model, _LM1B, length=length, batch_size=batch_size)


def _recurrent(data: TFDSText) -> LanguageModelling:
    model = Recurrent("lstm", width=256, base_width=256)
    return LanguageModelling(model, data, length=32, batch_size=128)


def _vit(width: int, head_dim: int, depth: int) -> ImageClassification:
    model = ViT(
        width=width,
        head_dim=head_dim,
        depth=depth,
        patch=16,
        base_width=width,
        base_head_dim=head_dim,
        base_depth=depth,
    )
    return _images(model, _CIFAR100)


def _autoencoder(data: TFDSImages, batch_size: int) -> Autoencoding:
    model = AutoEncoder(width=128, bottleneck=4, base_width=128)
    return Autoencoding(model, data, batch_size=batch_size)


def _cell(name: str, task: BaseTask, note: str = "") -> Cell:
    # One start for all optimizers, so that they stay comparable.
    return Cell(name, "held_out", task.with_readout_init("lecun"), HORIZON, note)


def _image_cells() -> tuple[Cell, ...]:
    deep = MLP((128, 128, 128), base_width=128)
    normed = dataclasses.replace(deep, layer_norm=True)
    tanh = dataclasses.replace(deep, activation="tanh")
    shallow = MLP((128, 128), base_width=128)
    return (
        _cell("ImageMLP_FashionMnist_Relu128x128", _images(shallow, _FASHION)),
        _cell("ImageMLP_Cifar10_128x128x128_LayerNorm_Relu", _images(normed)),
        _cell("ImageMLP_Cifar10_128x128x128_Tanh_bs128", _images(tanh)),
        _cell("Conv_Cifar10_32x64x64", _images(ConvNet())),
        _cell(
            "Conv_Cifar10_32x64x64_batchnorm",
            _images(ConvNet(norm="group")),
            f"group normalization in place of batch normalization; {_BEFORE}",
        ),
        _cell(
            "Conv_Cifar10_32x64x64_layernorm",
            _images(ConvNet(norm="layer")),
            f"no bias beside the norm; {_BEFORE}",
        ),
        _cell("Conv_Cifar100_32x64x64", _images(ConvNet(), _CIFAR100)),
        _cell("VIT_Cifar100_wideshallow", _vit(384, 64, 6)),
        _cell("VIT_Cifar100_skinnydeep", _vit(128, 32, 10)),
    )


def _other_cells() -> tuple[Cell, ...]:
    runtime = "TransformerLM_LM1B_MultiRuntime_"
    dropout = f"{_DECODER}; no dropout, theirs drops out a tenth"
    wikipedia = "RNNLM_wikipediaen32k_Patch32_LSTM256_Embed128"
    student = MLP((4, 4), base_width=4)
    return (
        _cell(f"{runtime}0", _decoder(20, 4, 1, 4, 8), dropout),
        _cell(f"{runtime}2", _decoder(32, 8, 2, 8, 8), _DECODER),
        _cell(f"{runtime}5", _decoder(32, 8, 1, 8, 32), _DECODER),
        _cell(
            "ImageMLPAE_Cifar10_128x32x128_bs256",
            _autoencoder(_CIFAR10, 256),
            _AUTOENCODER,
        ),
        _cell(
            "ImageMLPAE_Mnist_128x32x128_bs128",
            _autoencoder(TFDSImages("mnist"), 128),
            _AUTOENCODER,
        ),
        _cell("RNNLM_lm1b32k_Patch32_LSTM256_Embed128", _recurrent(_LM1B), _RECURRENT),
        _cell(wikipedia, _recurrent(_WIKIPEDIA), _RECURRENT),
        _cell(
            "LOpt_AdafacMLPLOpt_FashionMnist_50",
            RandomTeacher(student, num_inputs=39, num_targets=2, batch_size=128),
            "no twin: theirs trains a learned optimizer (an MLP 39-4-4-2) by gradients "
            "through 50 steps; the nearest here is the same MLP learning from a random "
            "teacher, without the unroll and without its decays",
        ),
    )


CELO17 = Suite(
    "celo17",
    "the 17 tasks of the Celo paper or their nearest, with interquartile means",
    lambda: (*_image_cells(), *_other_cells()),
    aggregate=True,
)
