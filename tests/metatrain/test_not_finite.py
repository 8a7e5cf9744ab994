"""Meta-parameters stay finite, whatever the losses are."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from metatrain.outer import OuterOptimizer
from tests.metatrain.test_outer_optimizer import CONSTANT, Slope, training


@pytest.mark.parametrize(
    "slope", [1e37, pytest.param(float("inf"), marks=pytest.mark.slow)]
)
def test_losses_without_bound_never_reach_the_state(slope):
    """A sum of huge losses overflows, and so does its product with the noise."""
    meta = training(OuterOptimizer(**CONSTANT), Slope(slope))
    state = meta.init()
    harmless = []
    for _ in range(3):
        state, metrics = meta.step(state, {0: None})
        kept = (state.theta, state.average, state.outer_opt_state)
        for leaf in jax.tree.leaves(kept):
            assert np.isfinite(np.asarray(leaf, np.float64)).all()
        spoiled = float(metrics["nonfinite"]) + float(metrics["skipped"])
        harmless.append(spoiled == 0.0)
    assert not any(harmless)  # it is counted each time
    assert int(state.step) == 3
