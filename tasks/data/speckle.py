"""Procedural images like B-mode ultrasound of a liver beside a kidney.

Images are graded for steatosis: the fat fraction, the share of liver cells that hold
fat, is cut at 5, 33 and 66 % into grades S0 to S3 (Kleiner et al., Hepatology 2005,
doi:10.1002/hep.20701). Fat has three effects, all of which saturate, so that the first
fat shows most: the liver becomes brighter than the kidney, sound is attenuated faster
with depth, and high frequencies are attenuated first, so speckle coarsens with depth.

Speckle is the interference of echoes of many scatterers in one resolution cell: the
envelope of complex white Gaussian noise under a point spread function, with a Rayleigh
distribution (Wagner et al., IEEE Trans. Sonics Ultrason. 1983,
doi:10.1109/T-SU.1983.31404). Scanners show its logarithm.

`Patients.appearance` is the effect of fat plus a deviation of the patient's own. Images
depend on the appearance and on nothing else of the patient, so no reader of images has
a larger area under the ROC curve than the appearance itself. Images of one patient
differ only in view and speckle: patients are independent, rows of a split are not.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from configuration.fields import configuration
from tasks.base import SPLITS, Split
from tasks.data.arrays import Splits, select
from tasks.data.images import DrawnImages, split_bounds

FAT_EDGES = np.array([0.0, 0.05, 0.33, 0.66, 1.0])
"""Fat fractions that bound the grades."""
HALF_EFFECT = 0.2
"""Saturation constant of `effect`: the smaller, the sooner fat saturates."""
CONTRAST = 10.0
"""Decibels by which the liver is brighter than the kidney, per unit of appearance."""
ATTENUATION = 12.0
"""Decibels lost from the top of the image to its bottom, per unit of appearance."""
GAIN = 3.0
"""Standard deviation of a view's gain, in decibels."""
LIMITS = (-32.0, 24.0)
"""Decibels stored as 0 and 255; others are clipped."""
AXIAL, LATERAL = 0.025, 0.05
"""Deviations of the point spread function, as fractions of the image's side."""
KIDNEY = (0.72, 0.62)
"""Mean centre of the kidney: depth, and position from the left."""
RADII = (0.17, 0.25)
"""Semi-axes of the kidney, in the same order."""
WANDER = (0.05, 0.03)
"""Deviations of the centre between patients, and between views of one patient."""

_AT_ONCE = 256


class Patients(NamedTuple):
    """Patients of one split in the order of their images, as NumPy arrays."""

    identity: np.ndarray  # [n] int, unique across splits
    grade: np.ndarray  # [n] int, 0 … 3
    fat: np.ndarray  # [n] the fat fraction, 0 … 1
    appearance: np.ndarray  # [n] effect of the fat, plus the patient's own deviation
    kidney: np.ndarray  # [n, 2] centre of the kidney: depth, from the left


@configuration
class Speckle(DrawnImages):
    """Procedural speckle images of four grades, with splits by patient.

    `num_train` patients are cut 80/10/10 into train, inner_valid and outer_valid. Every
    split has the grades in the proportions of `prevalences`, as nearly as whole
    patients allow, in random order. Images of a patient are consecutive rows.
    """

    size: int = 32
    """Height and width of an image, in pixels."""
    num_train: int = 400
    """Number of patients of train, inner_valid and outer_valid together."""
    num_test: int = 200
    """Number of test patients."""
    images_per_patient: int = 4
    """Number of views of each patient."""
    prevalences: tuple[float, float, float, float] = (0.4, 0.3, 0.2, 0.1)
    """Shares of the grades S0 to S3 among the patients."""
    deviation: float = 0.4
    """Standard deviation of appearance, in units of the effect of pure fat."""
    seed: int = 0
    """Seed of everything random."""

    num_classes = 4

    def __post_init__(self) -> None:
        least = {"num_train": 40, "num_test": 4}
        self.check_fields("deviation", size=8, images_per_patient=1, **least)
        shares = self.prevalences
        positive = len(shares) == 4 and all(share > 0 for share in shares)
        if not positive or not abs(sum(shares) - 1) <= 1e-9:
            raise ValueError(
                f"prevalences = {shares} must be 4 positive shares with sum 1"
            )
        for split, (begin, end) in zip(SPLITS, self.bounds, strict=True):
            if 0 in allot(self.prevalences, end - begin):
                name = "num_test" if split == "test" else "num_train"
                raise ValueError(
                    f"{name} = {getattr(self, name)} is too small for prevalences = "
                    f"{self.prevalences}: {split} would lack a grade"
                )

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """Identities of the first patient of each split, and past its last."""
        num = self.num_train
        edges = (0, *split_bounds(num), num + self.num_test)
        return tuple(itertools.pairwise(edges))

    @property
    def row_bounds(self) -> tuple[int, int, int]:
        """Rows at which inner_valid, outer_valid and test begin."""
        first, second, third = split_bounds(self.num_train)
        views = self.images_per_patient
        return (views * first, views * second, views * third)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (self.size, self.size, 1)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Draws images and grades, patient by patient (see `DrawnImages.pixels`)."""
        views, splits = self.images_per_patient, _draw_patients(self)
        appearance, kidney, labels = (
            np.concatenate([np.repeat(getattr(s, name), views, axis=0) for s in splits])
            for name in ("appearance", "kidney", "grade")
        )
        rng = np.random.RandomState([self.seed, 1])
        kidney = kidney + WANDER[1] * rng.normal(size=kidney.shape)
        gain = GAIN * rng.normal(size=(len(labels), 1, 1))
        images = np.empty((len(labels), *self.image_shape), np.uint8)
        for begin in range(0, len(labels), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            shape = (2, len(labels[part]), self.size, self.size)
            noise = rng.normal(size=shape) / math.sqrt(2.0)
            amplitude = envelope(noise[0] + 1j * noise[1], appearance[part])
            level = decibels(appearance[part], kidney[part], self.size) + gain[part]
            level += 20.0 * np.log10(np.maximum(amplitude, 1e-6))
            grey = np.clip((level - LIMITS[0]) / (LIMITS[1] - LIMITS[0]), 0.0, 1.0)
            images[part, ..., 0] = np.round(255.0 * grey)
        return images, labels

    def patients(self, split: Split) -> Patients:
        """Returns the patients of a split; the rows of patient i start at i · views."""
        return select(_draw_patients(self), split)

    def patient_of_rows(self, split: Split) -> np.ndarray:
        """Returns the identity of each image's patient in a split, `[rows]` int."""
        return np.repeat(self.patients(split).identity, self.images_per_patient)


def effect(fat: np.ndarray) -> np.ndarray:
    """Returns the effect of fat on the image: 0 without, 1 for pure fat, ½ at 14 %."""
    return fat * (1.0 + HALF_EFFECT) / (fat + HALF_EFFECT)


def allot(shares: tuple[float, ...], num: int) -> np.ndarray:
    """Allots whole numbers with sum `num` to shares, by largest remainders."""
    exact = np.asarray(shares, np.float64) * num
    counts = np.floor(exact + 1e-9).astype(int)
    remainders = np.argsort(counts - exact, kind="stable")
    counts[remainders[: num - counts.sum()]] += 1
    return counts


def envelope(noise: np.ndarray, appearance: np.ndarray) -> np.ndarray:
    """Filters complex white noise `[n, size, size]` to Rayleigh amplitudes.

    Both have mean square 1. The axial deviation doubles by the bottom at appearance 1.
    """
    size = noise.shape[-1]
    pixel = (np.arange(size) + 0.5) / size
    distance = pixel[:, None] - pixel[None]
    spread = AXIAL * 2.0 ** (appearance[:, None] * pixel[None])
    axial = np.exp(-0.5 * (distance[None] / spread[..., None]) ** 2)
    axial /= np.sqrt((axial**2).sum(-1, keepdims=True))
    lateral = np.exp(-0.5 * (distance / LATERAL) ** 2)
    lateral /= np.sqrt((lateral**2).sum(0, keepdims=True))
    return np.abs(axial @ noise @ lateral)


def decibels(appearance: np.ndarray, kidney: np.ndarray, size: int) -> np.ndarray:
    """Computes mean echo levels `[n, size, size]` over the kidney's at the surface.

    `appearance` is `[n]`, and `kidney` its centres `[n, 2]`.
    """
    pixel = (np.arange(size) + 0.5) / size
    down = (pixel[None] - kidney[:, :1]) / RADII[0]
    across = (pixel[None] - kidney[:, 1:]) / RADII[1]
    liver = down[:, :, None] ** 2 + across[:, None] ** 2 > 1.0
    level = CONTRAST * liver - ATTENUATION * pixel[None, :, None]
    return appearance[:, None, None] * level


@functools.cache
def _draw_patients(speckle: Speckle) -> Splits:
    rng = np.random.RandomState(speckle.seed)
    splits = []
    for begin, end in speckle.bounds:
        counts = allot(speckle.prevalences, end - begin)
        grade = rng.permutation(np.repeat(np.arange(4), counts))
        low, high = FAT_EDGES[grade], FAT_EDGES[grade + 1]
        fat = low + rng.uniform(size=len(grade)) * (high - low)
        looks = effect(fat) + speckle.deviation * rng.normal(size=len(grade))
        kidney = np.array(KIDNEY) + WANDER[0] * rng.normal(size=(len(grade), 2))
        splits.append(Patients(np.arange(begin, end), grade, fat, looks, kidney))
    return Splits(*splits)
