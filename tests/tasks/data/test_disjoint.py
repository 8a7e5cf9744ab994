"""Embedded data: no example is in two splits, or twice in one."""

import hashlib

import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.data.embedded import Digits
from tasks.data.signals import Signals
from tasks.data.standard_library import SEPARATOR, StandardLibrary, read_files


def digests(examples):
    return [hashlib.sha256(example).hexdigest() for example in examples]


@pytest.mark.parametrize(
    ("source", "num"),
    [
        (Digits(), 1797),
        (Signals(), 5000),
        (Signals(length=12, noise=0.0, num_train=300, num_test=100, seed=7), 400),
    ],
)
def test_every_image_is_in_one_split_once(source, num):
    dataset = source.load()
    found = [
        digest
        for split in SPLITS
        for digest in digests(x.tobytes() for x in np.asarray(dataset.split(split)[0]))
    ]
    assert len(found) == num == len(set(found))


def test_every_file_of_the_standard_library_is_in_one_split():
    dataset = StandardLibrary().load()
    parts = [
        digests(np.asarray(dataset.split(split)).tobytes().split(SEPARATOR))
        for split in SPLITS
    ]
    files = sorted(digests(read_files().values()))
    assert sorted(digest for part in parts for digest in part) == files
    # Files with the same content, above all without any, may be in two.
    repeated = {digest for digest in files if files.count(digest) > 1}
    for one in range(4):
        for other in range(one):
            assert set(parts[one]) & set(parts[other]) <= repeated
