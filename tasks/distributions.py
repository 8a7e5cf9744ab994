"""Named task distributions, as plain values.

Distributions of papers are on the papers' data; names that end in `_digits`, `_mnist`,
`_cifar` or `_text` have the same shapes on smaller data, with smaller batches. Nothing
else differs but the base width of `_text`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from tasks.base import BaseTask
from tasks.classification import ImageClassification
from tasks.data.embedded import Digits
from tasks.data.images import Images
from tasks.data.signals import Signals
from tasks.data.standard_library import StandardLibrary
from tasks.data.tfds_images import TFDSImages
from tasks.groups import Group, TaskDistribution, over_widths
from tasks.language_modelling import LanguageModelling
from tasks.modelled import ModelTask
from tasks.models.mlp import MLP
from tasks.models.transformer import Transformer
from tasks.registry import FAMILIES, reserve
from tasks.variation import UNVARYING, Level, Variation

MULO_WIDTHS = (128, 512, 1024)
"""Widths of μLO_M; μLO_S has only the first (arXiv:2406.00153, Section 5)."""
FACTORS: dict[Level, tuple[float, float]] = {
    "task": (1e-3, 1e3),
    "tensor": (1e-2, 1e2),
    "parameter": (1e-1, 1e1),
}
"""VeLO's ranges of reparametrization (arXiv:2211.09760)."""


@dataclasses.dataclass(frozen=True)
class NamedDistribution:
    """A named distribution, made when it is asked for."""

    description: str
    """One line for a list."""
    make: Callable[[], TaskDistribution]
    """Makes it without reading data."""


def reparametrized(level: Level) -> Variation:
    """Returns VeLO's reparametrization of one level."""
    return Variation(reparametrization=level, factors=FACTORS[level])


def _mulo_mlp(data: Images, batch_size: int) -> ImageClassification:
    # Base width 1 is the paper's absolute rule: hidden steps are divided by the fan-in.
    return ImageClassification(MLP((128,) * 3, base_width=1), data, batch_size)


def _mulo_transformer() -> LanguageModelling:
    model = Transformer(width=128, depth=3, head_dim=32, base_width=32, scan=True)
    model = dataclasses.replace(model, base_head_dim=32, base_depth=3)
    return LanguageModelling(model, StandardLibrary(), length=64, batch_size=32)


_MULO_DATA: dict[str, tuple[str, Callable[[], ModelTask]]] = {
    "": (
        "MLPs of 3 hidden layers on ImageNet at 32×32, batch 4096",
        lambda: _mulo_mlp(TFDSImages("imagenet_resized/32x32"), 4096),
    ),
    "_digits": (
        "the same MLPs on 8×8 digits, batch 128",
        lambda: _mulo_mlp(Digits(), 128),
    ),
    "_mnist": (
        "the same MLPs on MNIST, batch 128",
        lambda: _mulo_mlp(TFDSImages("mnist"), 128),
    ),
    "_cifar": (
        "the same MLPs on a subset of CIFAR-10, batch 128",
        lambda: _mulo_mlp(TFDSImages("cifar10_subset"), 128),
    ),
    "_text": (
        "decoder-only transformers of 3 blocks on Python's standard library",
        _mulo_transformer,
    ),
}


def _celo_fast(*sources: tuple[str, Images]) -> TaskDistribution:
    model = MLP((32,), base_width=32)
    variation = reparametrized("task")
    return TaskDistribution(
        tuple(
            Group(name, ImageClassification(model, data, 64), variation=variation)
            for name, data in sources
        )
    )


def _small(name: str, grey: bool = False) -> TFDSImages:
    return TFDSImages(name, size=8, grey=grey)


_VELO_LIKE: tuple[tuple[str, float, Level], ...] = (
    ("mlp", 2.0, "task"),
    ("mlp_norm", 1.0, "tensor"),
    ("convnet", 1.0, "tensor"),
    ("resnet", 0.5, "none"),
    ("vit", 1.0, "task"),
    ("transformer", 1.0, "tensor"),
    ("lstm", 1.0, "none"),
    ("autoencoder", 1.0, "parameter"),
    ("vae", 0.5, "task"),
    ("signals", 1.0, "tensor"),
    ("teacher", 1.0, "parameter"),
    ("noisy_quadratic", 0.5, "none"),
)
"""Family, weight, and level of reparametrization. VeLO draws none, task, tensor and
parameter as 2 : 2 : 2 : 1; here each family has one level."""


def _velo_like() -> TaskDistribution:
    """Returns one group for each family, in which everything varies that can."""
    return TaskDistribution(
        tuple(
            Group(name, _sized(FAMILIES[name].task()), weight, _augmented(name, level))
            for name, weight, level in _VELO_LIKE
        ),
        each_step="one",
    )


def _sized(task: BaseTask) -> BaseTask:
    """Returns the task with batches to train on; `FAMILIES` has those for checks."""
    if isinstance(task, LanguageModelling):
        return dataclasses.replace(task, length=32, batch_size=16)
    if isinstance(task, ModelTask):
        return dataclasses.replace(task, batch_size=32)
    return task


def _augmented(name: str, level: Level) -> Variation:
    variation = UNVARYING if level == "none" else reparametrized(level)
    if name in ("noisy_quadratic", "teacher"):
        return variation
    rows = {"batch_share": 0.25, "init_scale": (0.5, 2.0)}
    if name not in ("autoencoder", "vae"):
        rows["label_noise"] = (0.0, 0.2)
    return dataclasses.replace(variation, **rows)  # pyright: ignore


DISTRIBUTIONS: dict[str, NamedDistribution] = {
    **{
        f"mulo_{size}{data}": NamedDistribution(
            f"μLO_{size.upper()}: {about}; "
            f"width{'s' if len(widths) > 1 else ''} {', '.join(map(str, widths))}",
            lambda widths=widths, make=make: TaskDistribution(
                over_widths(make(), widths)
            ),
        )
        for data, (about, make) in _MULO_DATA.items()
        for size, widths in (("s", MULO_WIDTHS[:1]), ("m", MULO_WIDTHS))
    },
    "celo_fast": NamedDistribution(
        "Celo's: MLP [32] on MNIST, Fashion-MNIST, CIFAR-10 and SVHN, grey at 8×8, "
        "batch 64, one reparametrization factor for the task",
        partial(
            _celo_fast,
            ("mnist", _small("mnist")),
            ("fashion_mnist", _small("fashion_mnist")),
            ("cifar10", _small("cifar10", grey=True)),
            ("svhn_cropped", _small("svhn_cropped", grey=True)),
        ),
    ),
    "celo_fast_local": NamedDistribution(
        "the same MLPs on digits, MNIST, a subset of CIFAR-10 and signals",
        partial(
            _celo_fast,
            ("digits", Digits()),
            ("mnist", _small("mnist")),
            ("cifar10_subset", _small("cifar10_subset", grey=True)),
            ("signals", Signals(length=64)),
        ),
    ),
    "celo_fast_digits": NamedDistribution(
        "the same MLPs on digits and signals: data that is always there",
        partial(_celo_fast, ("digits", Digits()), ("signals", Signals(length=64))),
    ),
    "velo_like": NamedDistribution(
        "twelve families, reparametrized, with label noise, small batches and scaled "
        "starts; one family per outer step, drawn by weight",
        _velo_like,
    ),
}
"""Distributions by their names on command lines."""

reserve("a distribution", DISTRIBUTIONS)
