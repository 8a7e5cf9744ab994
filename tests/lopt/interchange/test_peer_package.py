"""The adapter and the importer against the real google/learned_optimization.

`requirements-peer.txt` says how it is installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip(
    "learned_optimization",
    reason="google/learned_optimization is not importable: see requirements-peer.txt",
)

from learned_optimization import checkpoints
from learned_optimization.learned_optimizers import adafac_mlp_lopt, mlp_lopt, nn_adam
from learned_optimization.outer_trainers import (
    gradient_learner,
    lopt_truncated_step,
    truncated_pes,
    truncation_schedule,
)
from learned_optimization.tasks import base, quadratics

from lopt import SmallFC
from lopt.interchange import learned_optimization
from lopt.interchange.peer import PeerLearnedOptimizer

pytestmark = pytest.mark.slow
THEIRS = {
    "small_fc": adafac_mlp_lopt.AdafacMLPLOpt(step_mult=0.01),
    "mlp_lopt": mlp_lopt.MLPLOpt(step_mult=0.01),
    "nn_adam": nn_adam.NNAdam(),
}
FIELDS = {"nn_adam": {}}  # has no step_mult


@pytest.fixture(autouse=True)
def their_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", THEIRS)
def test_a_theta_that_it_saved_takes_its_steps(name, tmp_path):
    theirs = THEIRS[name]
    theta = jax.tree.map(
        lambda x: x + 0.01 * np.random.default_rng(0).normal(size=x.shape),
        theirs.init(jax.random.PRNGKey(0)),
    )
    checkpoints.save_state(str(tmp_path / "theta"), jax.tree.map(jnp.float32, theta))
    fields = FIELDS.get(name, {"step_mult": 0.01})
    artifact = learned_optimization.load(tmp_path / "theta", **fields)
    ours = PeerLearnedOptimizer(artifact.optimizer).opt_fn(artifact.theta)
    theirs = theirs.opt_fn(jax.tree.map(jnp.float32, theta))
    rng = np.random.default_rng(1)
    params = {"w": np.float32(rng.normal(size=(5, 3))), "b": np.ones(3, np.float32)}
    params = jax.tree.map(jnp.asarray, params)
    states = [opt.init(params, None, num_steps=10) for opt in (ours, theirs)]
    for _ in range(4):
        grad = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
        loss = jnp.float32(1.0)
        states = [
            opt.update(state, grad, loss=loss, model_state=None)
            for opt, state in zip((ours, theirs), states, strict=True)
        ]
        for key in params:
            got, wanted = (s.params[key] for s in states)
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)
    assert np.abs(np.asarray(states[0].params["w"] - params["w"])).max() > 1e-4


def test_its_gradient_estimator_differentiates_our_optimizer():
    lopt = PeerLearnedOptimizer(SmallFC(hidden_size=4, step_mult=0.01))
    step = lopt_truncated_step.VectorizedLOptTruncatedStep(
        base.single_task_to_family(quadratics.QuadraticTask()),
        lopt,
        truncation_schedule.ConstantTruncationSchedule(10),
        num_tasks=4,
    )
    key = jax.random.PRNGKey(0)
    theta = step.outer_init(key)
    weights = gradient_learner.WorkerWeights(
        theta, None, gradient_learner.OuterState(jnp.int32(0))
    )
    pes = truncated_pes.TruncatedPES(step, trunc_length=5, std=0.01, steps_per_jit=5)
    worker = pes.init_worker_state(weights, key)
    for _ in range(3):
        out, _ = pes.compute_gradient_estimate(weights, key, worker)
        worker = out.unroll_state
        assert np.isfinite(float(out.mean_loss))
        assert jax.tree.structure(out.grad) == jax.tree.structure(theta)
        assert any(np.asarray(x).any() for x in jax.tree.leaves(out.grad))
