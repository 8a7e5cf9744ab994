"""Arrays that users pass in, as the device holds them."""

import numpy as np
import pytest

from tasks.data.arrays import hold


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


def test_numbers_that_fit_are_kept_as_they_are():
    whole = np.arange(8) + 2**31 - 8
    some = np.float64([0, -3e38, 1, 2, 3, np.inf, np.nan, 5])
    splits = hold({"whole": whole, "some": some}).splits
    got = np.concatenate([np.asarray(part["whole"]) for part in splits])
    assert sorted(got) == list(whole)
    got = np.concatenate([np.asarray(part["some"]) for part in splits])
    assert np.isinf(got).sum() == np.isnan(got).sum() == 1
