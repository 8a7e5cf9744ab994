"""Statistics of channels, and batches normalized by them, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.data.images import gather, partition, statistics

SHAPES = [(4, 6, 1), (5, 3, 3)]


def random_images(num, shape):
    random = np.random.default_rng(0)
    high = np.arange(1, shape[-1] + 1) * 80  # channels unlike each other
    return random.integers(0, high, (num, *shape)).astype(np.uint8)


@pytest.fixture(params=SHAPES, ids=str)
def data(request):
    images = random_images(100, request.param)
    labels = np.random.default_rng(1).integers(0, 10, 100)
    return images, labels, partition(images, labels, (70, 80, 90))


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_are_those_of_each_channel(shape):
    images = random_images(2000, shape)
    mean, std = statistics(images)
    assert mean.dtype == std.dtype == np.float32
    exact = images.astype(np.float64)
    np.testing.assert_array_equal(mean, exact.mean((0, 1, 2)).astype(np.float32))
    np.testing.assert_allclose(std, exact.std((0, 1, 2)), rtol=1e-7)


def test_statistics_of_large_sums_are_exact():
    images = np.full((3000, 32, 32, 1), 255, np.uint8)
    images[0, 0, 0] = 254
    mean, std = statistics(images)
    num = images.size
    assert mean[0] == np.float32(255 - 1 / num)
    assert std[0] == pytest.approx(np.sqrt((num - 1) / num**2), rel=1e-6)


def test_a_constant_channel_becomes_zeros():
    images = random_images(10, (2, 2, 3))
    images[..., 1] = 9
    dataset = partition(images, np.zeros(10), (7, 8, 9))
    found = gather(dataset, jnp.arange(7), "train").images
    assert np.isfinite(found).all() and not found[..., 1].any()


def test_each_split_has_its_rows_and_train_alone_the_statistics(data):
    images, labels, dataset = data
    edges = [0, 70, 80, 90, 100]
    for split, start, stop in zip(SPLITS, edges, edges[1:], strict=False):
        part = dataset.split(split)
        assert part.images.dtype == jnp.uint8 and part.labels.dtype == jnp.int32
        np.testing.assert_array_equal(part.images, images[start:stop])
        np.testing.assert_array_equal(part.labels, labels[start:stop])
    mean, std = statistics(images[:70])
    np.testing.assert_array_equal(np.stack(dataset.mean), mean)
    np.testing.assert_array_equal(np.stack(dataset.std), std)


def test_batches_are_normalized_per_channel(data):
    images, labels, dataset = data
    rows = np.array([3, 3, 69, 0])
    mean, std = (x.astype(np.float64) for x in statistics(images[:70]))
    batch = jax.jit(gather, static_argnums=2)(dataset, rows, "train")
    want = (images[rows] - mean) / std
    np.testing.assert_allclose(batch.images, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batch.labels, labels[rows])
    whole = jax.jit(lambda data: gather(data, slice(None), "test"))(dataset)
    np.testing.assert_allclose(
        whole.images, (images[90:] - mean) / std, rtol=1e-5, atol=1e-6
    )


def test_gathering_is_vectorized_over_members():
    images = random_images(100, (5, 3, 3))
    dataset = partition(images, np.arange(100), (70, 80, 90))
    rows = np.random.default_rng(2).integers(0, 70, (3, 5))
    found = jax.jit(jax.vmap(lambda r: gather(dataset, r, "train")))(rows)
    mean, std = statistics(images[:70])
    want = (images[rows] - mean) / std
    np.testing.assert_allclose(found.images, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.labels, rows)


def test_the_device_has_a_copy():
    images = random_images(10, (2, 2, 1))
    dataset = partition(images, np.zeros(10), (7, 8, 9))
    before = np.array(dataset.train.images)
    images[:] = 0
    np.testing.assert_array_equal(dataset.train.images, before)
