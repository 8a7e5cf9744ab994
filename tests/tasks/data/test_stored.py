"""Batches taken from iterators, and errors that name the bad ones."""

import types

import jax
import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.data.stored import store


def from_batches(**splits):
    """Returns datasets of the given batches; other splits have two good ones."""
    good = [np.zeros(2, np.float32), np.ones(2, np.float32)]
    return types.SimpleNamespace(
        **{split: iter(splits.get(split, good)) for split in SPLITS}
    )


A, B = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("split", "batches", "message"),
    [
        ("test", [A], r"^datasets.test ended after 1 of 2 batches: ask for fewer"),
        (
            "train",
            [{"x": A}, {"x": B[:1]}],
            r"^datasets.train, batch 1\['x'\] has shape \(1, 3\) and dtype float32; in "
            r"the first batch \(2, 3\) and float32$",
        ),
        ("inner_valid", [A, B.astype(np.float16)], "and dtype float16; in the first"),
        ("outer_valid", [{"x": A}, {"y": B}], "^datasets.outer_valid, batch 1 has the"),
        (
            "train",
            [{"x": "ab"}],
            r"^datasets.train, batch 0\['x'\] is a str of dtype <U",
        ),
        ("train", [types.MappingProxyType({"x": A})], "is a mappingproxy of dtype obj"),
        (
            "test",
            [{"x": A}, {"x": np.float32([[0, 1, 2], [3, np.nan, np.nan]])}],
            r"^datasets.test, batch 1\['x'\]\[1, 1\] is nan; data must be finite",
        ),
        ("train", [np.float64(1e39)], r"^datasets.train, batch 0 holds 1e\+39, beyond"),
        ("train", [{}], "^datasets.train, batch 0 holds no array$"),
    ],
)
def test_bad_batches_are_named(split, batches, message):
    with pytest.raises(ValueError, match=message):
        store(from_batches(**{split: batches}), 2, 2)


def test_missing_iterators_are_named():
    with pytest.raises(ValueError, match="has no outer_valid, test: there must be"):
        store(types.SimpleNamespace(train=[A], inner_valid=[A]), 1, 1)


class OnlyNext:
    """All that an iterator of that library promises."""

    def __init__(self):
        self.count = 0

    def __next__(self):
        self.count += 1
        return self.count, {"x": np.full(3, self.count, np.float64)}


def test_any_tree_of_numbers_from_anything_with_next():
    sources = types.SimpleNamespace(**{split: OnlyNext() for split in SPLITS})
    stored = store(sources, 3, 1)
    count, arrays = stored.train
    np.testing.assert_array_equal(count, [1, 2, 3])
    np.testing.assert_array_equal(
        arrays["x"], np.repeat([[1.0], [2.0], [3.0]], 3, axis=1)
    )
    assert arrays["x"].dtype == np.float32 and isinstance(count, jax.Array)
    # No more is taken than was asked for.
    assert [sources.train.count, sources.test.count] == [3, 1]
    one = stored.batch(np.int32(1), "train")
    assert int(one[0]) == 2 and one[1]["x"].shape == (3,)
