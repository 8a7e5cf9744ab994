"""Sums of the weights of running averages."""

import jax
import numpy as np
import pytest

from lopt.per_parameter import accumulators


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999, 0.99999])
def test_weights_sum_to_what_they_do_in_float64(decay):
    counts = np.array([1, 2, 10, 1000, 10**6])
    total = jax.jit(accumulators.total_weight, static_argnums=0)
    got = total(decay, np.float32(counts))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, 1 - decay ** np.float64(counts), rtol=1e-6)
