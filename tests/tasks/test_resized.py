"""Images at other resolutions keep labels, splits and what they show."""

import numpy as np
import pytest

from tasks import Digits, TFDSImages
from tasks.base import SPLITS
from tasks.data.resized import Resized, resize

RNG = np.random.default_rng(0)


def test_blocks_are_averaged_and_halves_rounded_up():
    images = np.zeros((1, 4, 4, 1), np.uint8)
    images[0, :2, :2, 0] = [[1, 2], [3, 4]]  # mean 2.5
    images[0, :2, 2:, 0] = [[1, 2], [3, 3]]  # mean 2.25
    images[0, 2:, :2, 0] = 255
    assert resize(images, 2)[0, :, :, 0].tolist() == [[3, 2], [255, 0]]


def test_resizing_against_plain_loops_with_channels():
    images = RNG.integers(0, 256, (2, 6, 6, 3), np.uint8)
    for size in (2, 3):
        block = 6 // size
        for i in range(size):
            for j in range(size):
                cut = images[
                    :, i * block : (i + 1) * block, j * block : (j + 1) * block
                ]
                expected = np.floor(cut.mean((1, 2)) + 0.5)
                np.testing.assert_array_equal(resize(images, size)[:, i, j], expected)
    large = resize(images, 12)
    np.testing.assert_array_equal(large[:, 5, 8], images[:, 2, 4])
    np.testing.assert_array_equal(resize(large, 6), images)


def test_splits_labels_and_order_are_those_of_the_data():
    plain, large = Digits().load(), Resized(Digits(), 16).load()
    for split in SPLITS:
        old, new = plain.split(split), large.split(split)
        np.testing.assert_array_equal(old.labels, new.labels)
        np.testing.assert_array_equal(new.images[:, ::2, 1::2], old.images)
    # Every pixel stands there four times: statistics are those of the data.
    np.testing.assert_allclose(large.mean, plain.mean, rtol=1e-6)
    np.testing.assert_allclose(large.std, plain.std, rtol=1e-6)
    small = Resized(Digits(), 4)
    assert small.image_shape == (4, 4, 1) and small.num_classes == 10
    assert small.load().test.images.shape == (360, 4, 4, 1)


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (Digits(), 12, "size = 12 must be a multiple or a divisor.*8 x 8"),
        (Digits(), 0, "size = 0"),
        (Digits(), True, "size = True"),
        (TFDSImages(), 14, "TFDSImages has a size of its own"),
    ],
)
def test_nonsense_is_refused(data, size, message):
    with pytest.raises(ValueError, match=message):
        Resized(data, size)
