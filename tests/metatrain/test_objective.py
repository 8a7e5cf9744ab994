"""Normalization and the cap: divergence counts, but never dominates."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from metatrain.objective import Objective


def test_losses_are_divided_by_chance_and_capped():
    losses = jnp.array([0.0, 1.0, 2.0, 2.9, 3.1, 1e30, jnp.inf, jnp.nan, -jnp.inf])
    normalized = Objective(cap=1.5).normalize(losses, 2.0)
    np.testing.assert_allclose(
        normalized, [0.0, 0.5, 1.0, 1.45, 1.5, 1.5, 1.5, 1.5, 0.0], rtol=1e-6
    )


def test_what_stands_at_the_cap_has_diverged():
    normalized = Objective().normalize(jnp.array([1.0, 1e9, jnp.nan]), 1.0)
    np.testing.assert_array_equal(Objective().diverged(normalized), [False, True, True])


def test_a_bad_cap_is_named():
    with pytest.raises(ValueError, match=r"objective.cap = -1"):
        Objective(cap=-1)
