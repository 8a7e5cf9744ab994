"""Ladders: one trained cell, and cells that differ from it in a single thing.

`cpu` takes minutes on two cores, mostly with data that any installation has; `gpu` has
the scale of μLO_S on small prepared datasets; `paper` is on ImageNet at 32×32 pixels,
from the setting of μLO_S itself (see `tasks.suites.mulo`). Cells whose data is not on a
machine are skipped there. Every ladder ends with cells that differ in several things:
other data, other networks and another loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tasks.autoencoding import Autoencoding
from tasks.base import BaseTask
from tasks.classification import ImageClassification
from tasks.data.embedded import Digits
from tasks.data.images import Images
from tasks.data.resized import Resized
from tasks.data.signals import Signals
from tasks.data.standard_library import StandardLibrary
from tasks.data.tfds_images import TFDSImages
from tasks.data.tfds_text import TFDSText
from tasks.data.tokenizers import BytePairs
from tasks.language_modelling import LanguageModelling
from tasks.models.autoencoder import AutoEncoder
from tasks.models.base import Model
from tasks.models.convolutional import ConvNet
from tasks.models.mlp import MLP
from tasks.models.recurrent import Recurrent
from tasks.models.resnet import ResNet
from tasks.models.transformer import Transformer
from tasks.models.vit import ViT
from tasks.regression import RandomTeacher
from tasks.suites import mulo
from tasks.suites.cell import Axis, Cell, Suite


def _mlp(*widths: int) -> ImageClassification:
    return ImageClassification(MLP(widths, base_width=32), batch_size=128)


def _quickstart() -> tuple[Cell, ...]:
    return (
        Cell("trained", "trained", _mlp(32, 32), 400),
        Cell("width 128", "width", _mlp(128, 128), 400),
        Cell("width 512", "width", _mlp(512, 512), 400),
        Cell("depth 4", "depth", _mlp(32, 32, 32, 32), 400),
        Cell("horizon 2000", "horizon", _mlp(32, 32), 2000),
    )


@dataclasses.dataclass(frozen=True)
class _Ladder:
    """Makes cells from the trained one."""

    task: ImageClassification
    num_steps: int

    def cell(self, axis: Axis, name: str, task: BaseTask) -> Cell:
        return Cell(name, axis, task, self.num_steps)

    def trained(self) -> Cell:
        return self.cell("trained", "trained", self.task)

    def widths(self, *widths: int) -> Iterator[Cell]:
        for n in widths:
            yield self.cell("width", f"width {n}", self.task.at_width(n))

    def depths(self, *depths: int) -> Iterator[Cell]:
        for n in depths:
            yield self.cell("depth", f"depth {n}", self.task.at_depth(n))

    def horizons(self, *horizons: int) -> Iterator[Cell]:
        for n in horizons:
            yield Cell(f"horizon {n}", "horizon", self.task, n)

    def resolutions(self, **sources: Images) -> Iterator[Cell]:
        """Yields cells of the same images, named by their heights (`x16`)."""
        for name, data in sources.items():
            task = dataclasses.replace(self.task, data=data)
            yield self.cell("resolution", f"resolution {name.removeprefix('x')}", task)

    def datasets(self, **sources: Images) -> Iterator[Cell]:
        for name, data in sources.items():
            task = dataclasses.replace(self.task, data=data)
            yield self.cell("dataset", f"dataset {name}", task)

    def families(self, **models: Model) -> Iterator[Cell]:
        """Yields cells of other classifiers."""
        for name, model in models.items():
            task = dataclasses.replace(self.task, model=model)
            yield self.cell("family", f"family {name}", task)

    def autoencoder(self, width: int) -> Cell:
        model = AutoEncoder(width=width, base_width=width)
        task = Autoencoding(model, self.task.data, self.task.batch_size)
        return self.cell("family", "family autoencoder", task)

    def held_out(self, name: str, task: BaseTask) -> Cell:
        return self.cell("held_out", name, task)


def _ladder_cpu() -> tuple[Cell, ...]:
    ladder = _Ladder(_mlp(32, 32), 400)
    text = LanguageModelling(
        Transformer(width=32, base_width=32, scan=True),
        StandardLibrary(),
        length=16,
        batch_size=16,
    )
    return (
        ladder.trained(),
        *ladder.widths(8, 128, 512),
        *ladder.depths(1, 4, 8),
        *ladder.horizons(100, 2000),
        *ladder.resolutions(
            x4=Resized(Digits(), 4),
            x16=Resized(Digits(), 16),
            x32=Resized(Digits(), 32),
        ),
        *ladder.datasets(
            signals=Signals(),
            mnist=TFDSImages("mnist", size=8),
            cifar10_subset=TFDSImages("cifar10_subset", size=8, grey=True),
        ),
        *ladder.families(
            convnet=ConvNet(width=8, base_width=8),
            vit=ViT(width=32, base_width=32, patch=4, scan=True),
        ),
        ladder.autoencoder(32),
        ladder.held_out("text transformer", text),
        ladder.held_out("random teacher", RandomTeacher(MLP((32, 32), base_width=32))),
    )


def _ladder_gpu() -> tuple[Cell, ...]:
    model = MLP((128, 128, 128), base_width=128)
    mnist = TFDSImages("mnist")
    ladder = _Ladder(ImageClassification(model, mnist, batch_size=1024), 1000)
    return (
        ladder.trained(),
        *ladder.widths(32, 512, 2048, 4096),
        *ladder.depths(1, 6, 16),
        *ladder.horizons(200, 5000, 25_000),
        *ladder.resolutions(
            x14=TFDSImages("mnist", size=14), x56=TFDSImages("mnist", size=56)
        ),
        *ladder.datasets(
            fashion_mnist=TFDSImages("fashion_mnist"),
            cifar10=TFDSImages("cifar10"),
            cifar10_subset=TFDSImages("cifar10_subset"),
        ),
        *ladder.families(
            convnet=ConvNet(),
            resnet=ResNet(),
            vit=ViT(width=128, base_width=128, depth=3, patch=7),
        ),
        ladder.autoencoder(128),
        ladder.held_out(
            "tiny_shakespeare transformer",
            LanguageModelling(
                Transformer(width=192, depth=3, head_dim=64, base_width=192),
                TFDSText("tiny_shakespeare"),
                batch_size=128,
            ),
        ),
        ladder.held_out(
            "wikitext2_small lstm",
            LanguageModelling(
                Recurrent("lstm", width=256, base_width=256),
                TFDSText("wikitext2_small", BytePairs(1024)),
                batch_size=128,
            ),
        ),
    )


def _ladder_paper() -> tuple[Cell, ...]:
    ladder = _Ladder(mulo.mlp(mulo.IN32, mulo.TRAINED_WIDTH), mulo.HORIZON)
    return (
        ladder.trained(),
        *ladder.widths(32, 512, 2048, 8192),
        *ladder.depths(1, 6, 16),
        *ladder.horizons(*mulo.LONG_HORIZONS),
        *ladder.resolutions(x16=TFDSImages("imagenet_resized/16x16"), x64=mulo.IN64),
        *ladder.datasets(cifar10=mulo.CIFAR, food101=TFDSImages("food101", size=32)),
        *ladder.families(
            convnet=ConvNet(width=32, base_width=1),
            # Norms of the ResNet need more than one channel at the base width.
            resnet=ResNet(),
            vit=mulo.vit(192).model,
        ),
        ladder.held_out("lm1b transformer", mulo.language_model(192)),
    )


QUICKSTART = Suite(
    "quickstart",
    "digits, MLPs of base width 32: wider, deeper and longer than meta-training",
    _quickstart,
)
LADDER_CPU = Suite(
    "ladder_cpu",
    "from the quickstart's trained cell over width, depth, horizon, resolution, "
    "dataset and family; under half an hour on 2 cores",
    _ladder_cpu,
)
LADDER_GPU = Suite(
    "ladder_gpu",
    "the same from a width-128 MLP on MNIST, 1,000 steps of batch 1,024",
    _ladder_gpu,
)
LADDER_PAPER = Suite(
    "ladder_paper",
    "the same from μLO_S's setting on ImageNet 32×32, 1,000 steps of batch 4,096",
    _ladder_paper,
)
