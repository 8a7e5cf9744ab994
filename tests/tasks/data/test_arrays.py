"""Arrays that users pass in, as the device holds them."""

import jax.numpy as jnp
import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.data.arrays import Splits, hold


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.arange(8) + 2**31, r"data\['x'\] holds 2147483655, beyond int32"),
        (-(np.arange(8) + 2**31), r"holds -2147483655, beyond int32"),
        (np.linspace(0, 1e39, 8), r"holds 1e\+39, beyond float32"),
    ],
)
def test_numbers_that_would_wrap_or_overflow_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        hold({"x": values})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16, np.complex64])
def test_values_that_are_not_finite_are_refused_where_they_stand(value, dtype):
    good, bad = np.zeros((8, 2), dtype), np.zeros((8, 2), dtype)
    bad[6, 1] = bad[7, 0] = value
    message = r"\['x'\]\[6, 1\] is .*(nan|inf).*; data must be finite: leave"
    with pytest.raises(ValueError, match=f"^data{message}"):
        hold({"x": bad})
    parts = {split: {"x": good} for split in SPLITS}
    for split in SPLITS:
        with pytest.raises(ValueError, match=f"^{split}{message}"):
            hold(Splits(**parts | {split: {"x": bad}}))


def test_numbers_that_fit_are_kept_as_they_are():
    whole = np.arange(8) + 2**31 - 8
    some = np.float64([0, -3e38, 1, 2, 3, 4, 5, 6])
    splits = hold({"whole": whole, "some": some}).splits
    got = np.concatenate([np.asarray(part["whole"]) for part in splits])
    assert sorted(got) == list(whole)
    got = np.concatenate([np.asarray(part["some"]) for part in splits])
    assert sorted(got) == sorted(some.astype(np.float32))
