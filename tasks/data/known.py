"""Shapes and sizes of some TFDS datasets, known without a disk.

With them the shapes, parameters and FLOP of a task are known on a machine without the
data. Where a dataset is prepared, its own declaration counts, and `check` refuses one
that contradicts this table, except for numbers of rows, which differ between versions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from tasks.data.declared import Feature, Prepared


@dataclasses.dataclass(frozen=True)
class Known:
    """A dataset as TFDS's catalogue describes it."""

    rows: Mapping[str, int]
    """Number of rows of each split on disk, in the stock version."""
    gigabytes: float
    """Approximate size on disk in 10⁹ bytes."""
    source: str
    """Author and licence."""
    image_shape: tuple[int | None, int | None, int] | None = None
    """Height, width and channels of its images, None where rows differ."""
    num_classes: int = 0
    """Number of labels of its images."""


_MNIST_ROWS = {"train": 60_000, "test": 10_000}
_CIFAR_ROWS = {"train": 50_000, "test": 10_000}
_CIFAR = (
    "Krizhevsky (2009), Learning multiple layers of features from tiny images; no "
    "licence stated"
)
_IMAGENET = "Chrabaszcz et al., arXiv:1707.08819; ImageNet's terms, research only"


def _imagenet(size: int, gigabytes: float) -> Known:
    rows = {"train": 1_281_167, "validation": 50_000}
    return Known(rows, gigabytes, _IMAGENET, (size, size, 3), 1000)


KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "mnist": Known(
            _MNIST_ROWS, 0.025, "LeCun et al. (1998); CC BY-SA 3.0", (28, 28, 1), 10
        ),
        "fashion_mnist": Known(
            _MNIST_ROWS, 0.04, "Xiao et al., arXiv:1708.07747; MIT", (28, 28, 1), 10
        ),
        "cifar10": Known(_CIFAR_ROWS, 0.14, _CIFAR, (32, 32, 3), 10),
        "cifar10_subset": Known(
            {"train": 20_000, "test": 1_000}, 0.04, _CIFAR, (32, 32, 3), 10
        ),
        "cifar100": Known(_CIFAR_ROWS, 0.14, _CIFAR, (32, 32, 3), 100),
        "svhn_cropped": Known(
            {"train": 73_257, "test": 26_032, "extra": 531_131},
            1.2,
            "Netzer et al. (2011); research only",
            (32, 32, 3),
            10,
        ),
        "food101": Known(
            {"train": 75_750, "validation": 25_250},
            5.1,
            "Bossard et al. (2014); images of Foodspotting, scientific fair use",
            (None, None, 3),
            101,
        ),
        "imagenet_resized/8x8": _imagenet(8, 0.4),
        "imagenet_resized/16x16": _imagenet(16, 1.1),
        "imagenet_resized/32x32": _imagenet(32, 3.7),
        "imagenet_resized/64x64": _imagenet(64, 14.0),
        "lm1b": Known(
            {"train": 30_301_028, "test": 306_688},
            4.3,
            "Chelba et al., arXiv:1312.3005; no licence stated",
        ),
        "wikipedia/20230601.en": Known(
            {"train": 6_672_479},
            21.0,
            "Wikimedia Foundation; CC BY-SA 3.0 and GFDL",
        ),
        "c4/en": Known(
            {"train": 364_613_570, "validation": 364_724},
            866.0,
            "Raffel et al., arXiv:1910.10683; ODC-BY and Common Crawl's terms",
        ),
    }
)
"""Datasets by name, without a version."""


def cost(name: str) -> str:
    """Returns the end of a sentence on what a dataset takes; empty if unknown."""
    known = KNOWN.get(name)
    if known is None:
        return ""
    size = known.gigabytes
    amount = f"{size:g} GB" if size >= 1 else f"{1000 * size:g} MB"
    return f", and takes about {amount} on disk ({known.source})"


def check(dataset: Prepared, image: Feature, label: Feature) -> None:
    """Compares a declaration with the table, if it has the name.

    Raises:
        ValueError: in one line that names both, if images or labels differ.
    """
    known = KNOWN.get(dataset.name)
    if known is None:
        return
    found = (image.shape, label.num_classes)
    if found != (known.image_shape, known.num_classes):
        raise ValueError(
            f"dataset {str(dataset)!r}: {dataset.path} declares images of shape "
            f"{found[0]} and {found[1]} labels, but {dataset.name!r} is known to have "
            f"{known.image_shape} and {known.num_classes} (tasks/data/known.py): if it "
            "is other data, give it another name"
        )
