"""Evaluation tasks of the μLO paper.

Thérien et al., μLO: Compute-Efficient Meta-Generalization of Learned Optimizers,
arXiv:2406.00153. 35 tasks of 1,000 steps: MLPs with three hidden layers on ImageNet at
32×32 and 64×64 pixels and on CIFAR-10 (batch 4,096), Vision Transformers of three
blocks on ImageNet 32×32 (batch 1,024), decoder transformers of three blocks on LM1B
(batch 128, 64 tokens, a vocabulary of 32,000), each over widths; and one network of
each kind with 16 layers at width 1,024 (batch 128). A second suite runs width 1,024 to
5,000 and 25,000 steps.

The trained cell is the setting of μLO_S: width 128, base width 1, so that the step of a
hidden matrix is multiplied by 1/fan-in as in the paper. (The base width of a released
optimizer replaces this one.)

Shapes, heads, patches, batches, horizons, multipliers of μP, the zero readout and the
causal mask are those of the paper. The differences:

* Biases start at 0, theirs at N(0, 1); a readout's bias is outside the multiplier.
  Weights are normal, theirs truncated normal of the same deviation.
* Their transformer has no positions, drops out units (also in evaluations) and counts
  token 0 as padding; ours learns positions and does neither. Its embedding starts at
  deviation 1, theirs at 1/√vocabulary.
* Their ViT starts the patch embedding, the positions and the MLP's second matrix at
  1/√width; here each starts at 1/√fan-in, positions at 1. Their step of the attention's
  output matrix is divided by the size of one head, here by its fan-in. Attention has no
  biases before the softmax here.
* Text is cut into byte pairs that are learned from the training split, theirs by a
  fixed sentencepiece model, so losses in nats per token are not comparable.
* Splits are disjoint here; their held-out split overlaps the training set.
* The dataset is TFDS's `imagenet_resized`, theirs JPEGs of their own making.

The paper gives the heads 3, 6, 8, 8, 16, 16 for the six widths of the ViT; its language
models are assumed to have the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tasks.base import BaseTask
from tasks.classification import ImageClassification
from tasks.data.tfds_images import TFDSImages
from tasks.data.tfds_text import TFDSText
from tasks.data.tokenizers import BytePairs
from tasks.language_modelling import LanguageModelling
from tasks.models.mlp import MLP
from tasks.models.transformer import Transformer
from tasks.models.vit import ViT
from tasks.suites.cell import Axis, Cell, Suite

HEADS = {192: 3, 384: 6, 768: 8, 1024: 8, 2048: 16, 3072: 16}
"""Attention heads by width."""
MLP_WIDTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
TRAINED_WIDTH = 128
HORIZON = 1000
LONG_HORIZONS = (5000, 25_000)
LONG_WIDTH = 1024
DEEP = 16

IN32 = TFDSImages("imagenet_resized/32x32")
IN64 = TFDSImages("imagenet_resized/64x64")
CIFAR = TFDSImages("cifar10")
LM1B = TFDSText("lm1b", BytePairs(32_000))


def mlp(
    data: TFDSImages, width: int, depth: int = 3, batch_size: int = 4096
) -> ImageClassification:
    """Returns an MLP of the paper."""
    model = MLP((width,) * depth, base_width=1)
    return ImageClassification(model, data, batch_size=batch_size)


def vit(width: int, depth: int = 3, batch_size: int = 1024) -> ImageClassification:
    """Returns a Vision Transformer of four patches of 16×16 pixels and a token."""
    model = ViT(
        width=width,
        depth=depth,
        head_dim=width // HEADS[width],
        patch=16,
        base_width=1,
        base_depth=3,
        base_head_dim=1,
    )
    return ImageClassification(model, IN32, batch_size=batch_size)


def language_model(width: int, depth: int = 3) -> LanguageModelling:
    """Returns a decoder transformer of the paper."""
    model = Transformer(
        width=width,
        depth=depth,
        head_dim=width // HEADS[width],
        base_width=1,
        base_depth=3,
        base_head_dim=1,
    )
    return LanguageModelling(model, LM1B, length=64, batch_size=128)


_LADDERS: dict[str, tuple[Callable[[int], BaseTask], tuple[int, ...]]] = {
    "IN32 MLP": (partial(mlp, IN32), MLP_WIDTHS),
    "CIFAR-10 MLP": (partial(mlp, CIFAR), MLP_WIDTHS),
    "IN64 MLP": (partial(mlp, IN64), MLP_WIDTHS[:-1]),
    "ViT": (vit, tuple(HEADS)),
    "LM1B": (language_model, tuple(HEADS)),
}
"""Functions from a width to a task, and the widths."""


def _axis(ladder: str, width: int) -> Axis:
    if ladder == "IN32 MLP":
        return "trained" if width == TRAINED_WIDTH else "width"
    if width != TRAINED_WIDTH:
        return "held_out"
    return "dataset" if ladder == "CIFAR-10 MLP" else "resolution"


def _paper() -> tuple[Cell, ...]:
    cells = [
        Cell(f"{ladder} w{width}", _axis(ladder, width), make(width), HORIZON)
        for ladder, (make, widths) in _LADDERS.items()
        for width in widths
    ]
    deep: dict[str, BaseTask] = {
        "IN32 MLP": mlp(IN32, LONG_WIDTH, DEEP, 128),
        "ViT": vit(LONG_WIDTH, DEEP, 128),
        "LM1B": language_model(LONG_WIDTH, DEEP),
    }
    cells += [
        Cell(f"{name} w{LONG_WIDTH} d{DEEP}", "held_out", task, HORIZON)
        for name, task in deep.items()
    ]
    return tuple(cells)


def _long() -> tuple[Cell, ...]:
    trained = mlp(IN32, TRAINED_WIDTH)
    return (
        Cell(f"IN32 MLP w{TRAINED_WIDTH}", "trained", trained, HORIZON),
        *(
            Cell(f"{ladder} {steps:,} steps", "held_out", make(LONG_WIDTH), steps)
            for ladder, (make, _) in _LADDERS.items()
            for steps in LONG_HORIZONS
        ),
    )


MULO_PAPER = Suite(
    "mulo_paper",
    "the 35 tasks of the μLO paper: MLPs, ViTs and language models, width 128 to 8,192",
    _paper,
)
MULO_PAPER_LONG = Suite(
    "mulo_paper_long",
    "the same paper's width-1,024 tasks for 5,000 and 25,000 steps",
    _long,
)
