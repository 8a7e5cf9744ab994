"""JAX and PyTorch run a wrapped artifact on the same gradients to the same parameters.

Gradients and bounds are those of `test_parity`, and so are the tensors, some of them.
"""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lopt import WIDTH_SAFE, Artifact, SmallFC
from lopt.schedules import WarmupStableDecay
from lopt.wrappers import ScheduledSteps, WeightDecay
from parametrization import ADAM_LIKE
from tests.test_parity import (
    BOUNDS,
    STEPS,
    in_jax,
    in_torch,
    one_thread,  # noqa: F401
    problem,  # noqa: F401
)

NAMES = ("square", "conv", "embedding", "vector", "scalar")

RULE = SmallFC(
    hidden_size=8,
    hidden_layers=2,
    step_mult=0.01,
    exp_mult=0.01,
    momentum_decays=(0.8, 0.98),
    factored_decays=(0.9, 0.995),
    epsilons=WIDTH_SAFE,
    rules=ADAM_LIKE,
)
# JAX computes levels in float32: k/32 and 1 - k/16 of 0.75 are exact there.
EXACT = WarmupStableDecay(warmup=32, decay=16, unit="steps")
CASES = {
    "decay inside": ScheduledSteps(WeightDecay(RULE, 0.1), 0.75, EXACT),
    "decay outside": WeightDecay(ScheduledSteps(RULE, 0.75, EXACT), 0.1),
    "bounded": ScheduledSteps(dataclasses.replace(RULE, largest_step=0.5), 0.75, EXACT),
}


@pytest.fixture(scope="module")
def few(problem):  # noqa: F811
    """Parameters and gradients of some tensors."""
    return tuple({name: tree[name] for name in NAMES} for tree in problem)


@pytest.fixture(scope="module", params=CASES)
def folder(request, tmp_path_factory):
    """A folder with random weights and offsets, as the JAX library writes it."""
    optimizer = CASES[request.param]
    rng = np.random.default_rng(1)

    def leaf(path, x):
        std = 0.05 if path[-1].key.endswith("offsets") else 1 / np.sqrt(x.shape[0])
        return np.float32(std * rng.normal(size=x.shape))

    shapes = jax.eval_shape(optimizer.init, jax.random.key(0))
    theta = jax.tree_util.tree_map_with_path(leaf, shapes)
    path = tmp_path_factory.mktemp("parity") / "artifact"
    Artifact(optimizer, theta, {"width": 2}).save(path)
    return path


def errors(ours, theirs):
    """Largest difference of each tensor, relative to its largest value at that step."""
    return {
        name: max(
            np.abs(x - y).max() / np.abs(x).max()
            for x, y in zip(ours[name], theirs[name], strict=True)
        )
        for name in NAMES
    }


@pytest.mark.parametrize("dtype", BOUNDS, ids=lambda dtype: dtype.__name__)
def test_fifty_steps_of_a_wrapped_rule_agree(folder, few, dtype):
    ours = in_jax(folder, few, dtype)
    theirs = in_torch(folder, few, dtype, num_steps=STEPS)
    for name, error in errors(ours, theirs).items():
        assert ours[name].dtype == theirs[name].dtype == dtype
        assert np.abs(ours[name][-1] - few[0][name]).max() > 1e-3, name
        assert error <= BOUNDS[dtype], name


@pytest.mark.parametrize("folder", ["decay inside"], indirect=True)
def test_rate_and_decay_of_the_user_come_on_top(folder, few):
    """p ← p - lr·(artifact's update + weight_decay·p), vectors spared."""
    ours = in_jax(
        folder,
        few,
        np.float64,
        lambda inner: ScheduledSteps(WeightDecay(inner, 0.03), 0.5),
    )
    options = {"num_steps": STEPS, "lr": 0.5, "weight_decay": 0.03}
    theirs = in_torch(folder, few, np.float64, **options)
    assert max(errors(ours, theirs).values()) <= BOUNDS[np.float64]
