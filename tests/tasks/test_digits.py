"""The embedded digits: what each split is, and that batches are functions of keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tasks import Digits, ImageClassification
from tasks.base import SPLITS, sample

BOUNDS = {
    "train": (0, 1077),
    "inner_valid": (1077, 1257),
    "outer_valid": (1257, 1437),
    "test": (1437, 1797),
}


@pytest.fixture(scope="module")
def data():
    return Digits().load()


@pytest.fixture(scope="module")
def raw():
    """Images and labels of the source, in the order of the permutation."""
    source = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    return source.images[order].astype(np.uint8)[..., None], source.target[order]


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_is_its_rows_of_the_permutation(data, raw, split):
    start, stop = BOUNDS[split]
    images, labels = data.split(split)
    assert isinstance(images, jax.Array) and isinstance(labels, jax.Array)
    assert images.dtype == jnp.uint8 and labels.dtype == jnp.int32
    np.testing.assert_array_equal(images, raw[0][start:stop])
    np.testing.assert_array_equal(labels, raw[1][start:stop])


def test_the_test_set_is_the_tail_of_the_permutation(data):
    source = load_digits()
    rows = np.random.RandomState(0).permutation(1797)[1437:]
    assert len(rows) == 360
    np.testing.assert_array_equal(data.test.labels, source.target[rows])
    np.testing.assert_array_equal(data.test.images[..., 0], source.images[rows])


def test_splits_are_disjoint_and_nothing_is_lost(data):
    assert [len(data.split(split).labels) for split in SPLITS] == [1077, 180, 180, 360]
    assert list(BOUNDS) == list(SPLITS)


def test_statistics_come_from_train_alone(data, raw):
    train = raw[0][:1077].astype(np.float64)
    everything = raw[0].astype(np.float64)
    assert float(data.mean[0]) == np.float32(train.mean())
    assert float(data.std[0]) == np.float32(train.std())
    assert float(data.mean[0]) != np.float32(everything.mean())


def test_an_unknown_split_is_refused(data):
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        data.split("valid")


def test_the_whole_of_a_split_is_normalized(data, raw):
    images, labels = ImageClassification().whole(data, "outer_valid")
    assert images.dtype == jnp.float32
    want = (raw[0][1257:1437] - np.float64(data.mean[0])) / np.float64(data.std[0])
    np.testing.assert_allclose(images, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(labels, raw[1][1257:1437])


@pytest.fixture(scope="module")
def draw():
    """`(split, key) -> (rows, batch)` with the dataset as an argument."""
    task = ImageClassification(batch_size=64)

    def both(data, key, split):
        return task.draw(data, key, split, 50).rows, sample(task, data, key, split)

    jitted = jax.jit(both, static_argnums=2)
    return lambda data, seed, split: jitted(data, jax.random.key(seed), split)


def test_a_batch_is_a_function_of_its_key(data, draw):
    first, again, other = (draw(data, seed, "train") for seed in (7, 7, 8))
    same = jax.tree.map(lambda x, y: bool((x == y).all()), first, again)
    assert all(jax.tree.leaves(same))
    assert not (first[0] == other[0]).all()
    assert not (first[1].images == other[1].images).all()


@pytest.mark.parametrize("split", SPLITS)
def test_draws_stay_in_their_split_and_reach_all_of_it(data, draw, split):
    size = len(data.split(split).labels)
    rows = np.concatenate(
        [np.asarray(draw(data, s, split)[0]).ravel() for s in range(4)]
    )
    assert rows.min() >= 0 and rows.max() < size
    assert len(rows) == 12800
    # 12,800 draws miss a given row of 1,077 with probability 7e-6.
    assert len(np.unique(rows)) == size
    counts = np.bincount(rows, minlength=size)
    chi_square = ((counts - len(rows) / size) ** 2).sum() * size / len(rows)
    assert abs(chi_square - (size - 1)) < 4.5 * np.sqrt(2 * (size - 1))


@pytest.mark.parametrize("split", SPLITS)
def test_batches_are_examples_of_their_split(data, draw, split):
    batch = draw(data, 3, split)[1]
    members = {
        (image.tobytes(), int(label))
        for image, label in zip(*map(np.asarray, data.split(split)), strict=True)
    }
    pixels = np.asarray(batch.images * data.std[0] + data.mean[0])
    restored = np.round(pixels).astype(np.uint8)
    np.testing.assert_allclose(pixels, restored, atol=1e-5)
    drawn = zip(restored, np.asarray(batch.labels), strict=True)
    assert batch.labels.shape == (64,) and batch.images.shape == (64, 8, 8, 1)
    assert all((image.tobytes(), int(label)) in members for image, label in drawn)


def test_an_empty_batch_is_refused():
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size = {size} must be a positive"):
            ImageClassification(batch_size=size)
