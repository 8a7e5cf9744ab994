"""Speckle: its statistics, effects of the grade, splits by patient."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.classification import ImageClassification
from tasks.data.images import partition
from tasks.data.speckle import (
    ATTENUATION,
    CONTRAST,
    LIMITS,
    RADII,
    Speckle,
    allot,
    decibels,
    effect,
    envelope,
)
from tasks.models.mlp import MLP

VIEWS = 4
PATIENTS = {"train": 320, "inner_valid": 40, "outer_valid": 40, "test": 200}
GRADES = {
    "train": [128, 96, 64, 32],
    "inner_valid": [16, 12, 8, 4],
    "outer_valid": [16, 12, 8, 4],
    "test": [80, 60, 40, 20],
}


@pytest.fixture(scope="module")
def data():
    return Speckle().load()


@pytest.fixture(scope="module")
def alike():
    """Images `[3200, 16, 16]` in decibels and the patients; fat is all that differs."""
    source = Speckle(16, 1000, 4, VIEWS, prevalences=(0.25,) * 4, deviation=0.0)
    grey = np.asarray(source.load().train.images, np.float64)[..., 0] / 255
    return grey * (LIMITS[1] - LIMITS[0]) + LIMITS[0], source.patients("train")


def test_it_is_a_source_of_images(data):
    source = Speckle()
    assert (source.image_shape, source.num_classes) == ((32, 32, 1), 4)
    for name, size in PATIENTS.items():
        images, labels = data.split(name)
        assert images.shape == (size * VIEWS, 32, 32, 1) and images.dtype == jnp.uint8
        assert labels.shape == (size * VIEWS,) and labels.dtype == jnp.int32
    assert source.load() is data
    task = ImageClassification(MLP((8,)), source, batch_size=4)
    batch = task.whole(data, "inner_valid")
    assert task.num_outputs == 4 and batch.images.shape == (160, 32, 32, 1)
    train = np.asarray(data.train.images, np.float64)
    assert float(data.mean[0]) == pytest.approx(train.mean(), rel=1e-6)
    # Little is lost at the ends of the grey scale.
    assert ((train == 0) | (train == 255)).mean() < 0.005


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_the_prevalences(data, split):
    patients = Speckle().patients(split)
    assert np.bincount(patients.grade).tolist() == GRADES[split]
    labels = np.asarray(data.split(split).labels)
    np.testing.assert_array_equal(labels, np.repeat(patients.grade, VIEWS))
    assert (np.diff(patients.grade) < 0).sum() > len(patients.grade) / 5  # no order


def test_no_patient_is_in_two_splits(data):
    source = Speckle()
    rows = {split: source.patient_of_rows(split) for split in SPLITS}
    everyone = np.concatenate(list(rows.values()))
    assert len(np.unique(everyone)) == 600 and np.bincount(everyone).tolist() == (
        [VIEWS] * 600
    )
    for split in SPLITS:
        assert len(np.unique(rows[split])) == PATIENTS[split]
        assert len(rows[split]) == len(data.split(split).labels)
    with pytest.raises(ValueError, match="unknown split 'valid'; there are train"):
        source.patients("valid")
    # And no image is in two splits either.
    images = np.concatenate([np.asarray(data.split(s).images) for s in SPLITS])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 2400


def test_images_of_a_patient_share_the_patient(data):
    # How much brighter the top is than the bottom: views of one patient agree beyond
    # the speckle, neighbouring rows of two patients do not.
    images = np.asarray(data.train.images, np.float64)[..., 0]
    fall = images[:, :10].mean((1, 2)) - images[:, -10:].mean((1, 2))
    views = fall.reshape(-1, VIEWS)
    within = np.corrcoef(views[:, 0], views[:, 3])[0, 1]
    across = np.corrcoef(views[:-1, 3], views[1:, 0])[0, 1]
    assert within > 0.6 and abs(across) < 4.5 / math.sqrt(320)
    patients = Speckle().patients("train")
    grades = [patients.grade == grade for grade in range(4)]
    rest = views.mean(1) - sum(views[g].mean() * g for g in grades)
    # Of one grade too, and it is the appearance that they share.
    looks = patients.appearance - sum(patients.appearance[g].mean() * g for g in grades)
    assert np.corrcoef(rest, looks)[0, 1] > 0.8


def test_fat_lies_in_its_grade_and_levels_off():
    patients = Speckle(num_train=4000).patients("train")
    cuts = np.searchsorted([0.05, 0.33, 0.66], patients.fat, side="right")
    np.testing.assert_array_equal(cuts, patients.grade)
    for grade, (low, high) in enumerate([(0, 0.05), (0.05, 0.33), (0.33, 0.66)]):
        fat = patients.fat[patients.grade == grade]
        error = (high - low) / math.sqrt(12 * len(fat))
        assert fat.mean() == pytest.approx((low + high) / 2, abs=4.5 * error)
    assert effect(np.array([0.0, 1 / 7, 1.0])) == pytest.approx([0, 0.5, 1])
    curve = effect(np.linspace(0, 1, 50))
    assert (np.diff(curve) > 0).all() and (np.diff(curve, 2) < 0).all()
    own = patients.appearance - effect(patients.fat)
    assert own.std() == pytest.approx(0.4, abs=4.5 * 0.4 / math.sqrt(2 * 3200))


def noise(num, size):
    parts = np.random.default_rng(0).normal(size=(2, num, size, size))
    return (parts[0] + 1j * parts[1]) / math.sqrt(2)


def test_the_envelope_is_rayleigh_and_the_decibels_are_its_logarithm():
    amplitude = envelope(noise(400, 16), np.zeros(400))
    # Every image is independent of the others; its pixels are not.
    means = {
        "square": (amplitude**2, 1.0),
        "mean": (amplitude, math.sqrt(math.pi) / 2),
        "decibels": (20 * np.log10(amplitude), -10 * np.euler_gamma / math.log(10)),
    }
    for name, (values, want) in means.items():
        of_images = values.mean((1, 2))
        error = of_images.std(ddof=1) / 20
        assert of_images.mean() == pytest.approx(want, abs=4.5 * error), name
        assert error < 0.02 * abs(want)
    # The deviation of log-compressed speckle is the same whatever its level: 5.57 dB.
    level = 20 * np.log10(amplitude)
    squares = ((level - level.mean()) ** 2).mean((1, 2))
    want = (10 / math.log(10)) ** 2 * math.pi**2 / 6
    error = squares.std(ddof=1) / 20
    assert squares.mean() == pytest.approx(want, abs=4.5 * error)
    assert math.sqrt(want) == pytest.approx(5.57, abs=0.005) and error < 0.03 * want
    # And at every pixel; the excess kurtosis of a log-exponential is 2.4.
    error = math.sqrt((2.4 + 2) / (4 * 400))
    assert level.std(0) == pytest.approx(math.sqrt(want), rel=4.5 * error)


@pytest.mark.parametrize("appearance", [0.0, 1.0])
def test_speckle_has_the_size_of_the_point_spread_function(appearance):
    num, size = 3000, 16
    squares = envelope(noise(num, size), np.full(num, appearance)) ** 2

    def field_correlation(weights, i, j):
        a, b = weights(i), weights(j)
        return a @ b / math.sqrt((a @ a) * (b @ b))

    at = (np.arange(size) + 0.5) / size

    def axial(i):
        return np.exp(-0.5 * ((at - at[i]) / (0.025 * 2 ** (appearance * at[i]))) ** 2)

    def lateral(j):
        return np.exp(-0.5 * ((at - at[j]) / 0.05) ** 2)

    # Intensities of Gaussian fields correlate by the square of the fields'.
    for (i, j), (k, m) in (
        ((1, 7), (2, 7)),
        ((13, 7), (14, 7)),
        ((3, 7), (3, 9)),
    ):
        want = field_correlation(axial, i, k) * field_correlation(lateral, j, m)
        a, b = squares[:, i, j], squares[:, k, m]
        parts = [np.corrcoef(a[n::20], b[n::20])[0, 1] for n in range(20)]
        error = np.std(parts, ddof=1) / math.sqrt(20)
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(want**2, abs=4.5 * error)
        assert error < 0.05
    top, bottom = (field_correlation(axial, i, i + 1) ** 2 for i in (1, 13))
    assert (bottom > 2 * top) == (appearance == 1.0)


def test_levels_are_a_bright_liver_a_kidney_and_a_fall_with_depth():
    kidney = np.array([[0.7, 0.4], [0.5, 0.9]])
    levels = decibels(np.array([1.0, -0.5]), kidney, 10)
    for n, looks in enumerate((1.0, -0.5)):
        for i in range(10):
            for j in range(10):
                y, x = (i + 0.5) / 10, (j + 0.5) / 10
                down = (y - kidney[n, 0]) / RADII[0]
                across = (x - kidney[n, 1]) / RADII[1]
                liver = CONTRAST if down**2 + across**2 > 1 else 0.0
                want = looks * (liver - ATTENUATION * y)
                assert levels[n, i, j] == pytest.approx(want, abs=1e-12)


def per_patient(values):
    return values.reshape(-1, VIEWS).mean(1)


def test_a_statistic_of_the_pixels_orders_the_grades(alike):
    # Not the recipe: the fall of the left third, where there is no kidney, and how
    # much darker the middle of the kidney is than the liver beside it.
    images, patients = alike
    left, middle = images[:, :, :4], images[:, :, 9:11]
    fall = per_patient(left[:, :5].mean((1, 2)) - left[:, 11:].mean((1, 2)))
    dark = per_patient((left - middle.mean(2, keepdims=True))[:, 10:13].mean((1, 2)))
    for statistic in (fall, dark):
        groups = [statistic[patients.grade == grade] for grade in range(4)]
        for low, high in itertools.pairwise(groups):
            error = math.hypot(
                *(x.std(ddof=1) / math.sqrt(len(x)) for x in (low, high))
            )
            assert high.mean() - low.mean() > 4.5 * error
    # Its size is the recipe's.
    line = np.polyfit(patients.appearance, fall, 1)
    rest = (fall - np.polyval(line, patients.appearance)).std()
    error = rest / patients.appearance.std() / math.sqrt(len(fall))
    assert line[0] == pytest.approx(ATTENUATION * 11 / 16, abs=4.5 * error)


def test_the_same_seed_makes_the_same_images(data):
    small = Speckle(size=8, num_train=60, num_test=12, images_per_patient=2)
    made = small.load()
    again = partition(*small.pixels(), small.row_bounds)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, made, again)))
    other = dataclasses.replace(small, seed=1).load()
    assert not np.array_equal(other.train.images, made.train.images)
    # A change of the recipe shows here.
    fat = Speckle().patients("test").fat
    assert fat[:3] == pytest.approx(
        [0.0070993238, 0.1226246692, 0.8053368779], abs=1e-9
    )
    mean = np.asarray(data.test.images, np.float64).mean()
    assert mean == pytest.approx(140.545525, abs=1e-3)


def test_whole_numbers_in_proportion():
    assert allot((0.4, 0.3, 0.2, 0.1), 10).tolist() == [4, 3, 2, 1]
    assert allot((0.4, 0.3, 0.2, 0.1), 52).tolist() == [21, 16, 10, 5]
    for num in range(4, 60):
        counts = allot((0.35, 0.3, 0.2, 0.15), num)
        assert counts.sum() == num
        assert np.abs(counts - np.array((0.35, 0.3, 0.2, 0.15)) * num).max() < 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("size", 7, "size = 7 must be at least 8"),
        ("images_per_patient", 0, "images_per_patient = 0 must be at least 1"),
        ("num_train", 39, "num_train = 39 must be at least 40"),
        ("num_test", 2.0, "num_test = 2.0 must be a whole number"),
        (
            "num_train",
            45,
            "num_train = 45 is too small for prevalences = (0.4, 0.3, 0.2, 0.1): "
            "inner_valid would lack a grade",
        ),
        (
            "prevalences",
            (0.5, 0.5, 0.0, 0.0),
            "prevalences = (0.5, 0.5, 0.0, 0.0) must be 4 positive shares with sum 1",
        ),
        ("deviation", -0.5, "deviation = -0.5 must not be negative"),
        ("seed", 2**32, "seed = 4294967296 must be a whole number in [0, 2³²)"),
    ],
)
def test_bad_fields_are_refused(field, value, message):
    with pytest.raises(ValueError) as info:
        dataclasses.replace(Speckle(), **{field: value})
    assert message == str(info.value)
