"""The adapter inside the real google/learned_optimization, where it can be imported.

`requirements-peer.txt` says how it is installed.
"""

import jax
import numpy as np
import pytest

pytest.importorskip(
    "learned_optimization",
    reason="google/learned_optimization is not importable: see requirements-peer.txt",
)

from learned_optimization.outer_trainers import (
    lopt_truncated_step,
    truncated_pes,
    truncation_schedule,
)
from learned_optimization.tasks import base, quadratics

from lopt import SmallFC
from lopt.peer import PeerLearnedOptimizer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def their_numpy():
    with jax.numpy_rank_promotion("allow"):
        yield


def truncated(lopt):
    family = base.single_task_to_family(quadratics.QuadraticTask())
    schedule = truncation_schedule.ConstantTruncationSchedule(10)
    return lopt_truncated_step.VectorizedLOptTruncatedStep(
        family, lopt, schedule, num_tasks=4
    )


def test_its_gradient_estimator_differentiates_our_optimizer():
    lopt = PeerLearnedOptimizer(SmallFC(hidden_size=4, step_mult=0.01))
    step = truncated(lopt)
    key = jax.random.PRNGKey(0)
    theta = step.outer_init(key)
    estimator = truncated_pes.TruncatedPES(step, trunc_length=5, std=0.01)
    worker = estimator.init_worker_state(
        type("Weights", (), {"theta": theta, "theta_model_state": None,
                             "outer_state": None})(),
        key,
    )  # fmt: skip
    out, _ = estimator.compute_gradient_estimate(
        type("Weights", (), {"theta": theta, "theta_model_state": None,
                             "outer_state": None})(),
        worker, key, False,
    )  # fmt: skip
    assert np.isfinite(float(out.mean_loss))
    assert jax.tree.structure(out.grad) == jax.tree.structure(theta)
    assert any(np.asarray(x).any() for x in jax.tree.leaves(out.grad))
