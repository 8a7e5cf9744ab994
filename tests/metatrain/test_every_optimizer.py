"""Every named optimizer goes through an outer step: perturbed, unrolled, moved."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from experiments.presets.optimizers import OPTIMIZERS
from lopt.learned.velo import VeLO
from lopt.wrappers import ScheduledSteps
from metatrain.estimators.pes import PES
from metatrain.outer import MetaTraining
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from tasks.classification import ImageClassification
from tasks.models.mlp import MLP

TASK = ImageClassification(MLP(widths=(3,), base_width=3), batch_size=4)
LEARNED_DECAYS = {
    "small_fc": {f"momentum_{k}" for k in range(3)}
    | {"second_moment_0"}
    | {f"factored_{k}" for k in range(3)},
    "learnable_sgdm": {"momentum"},
    "learnable_adam": {"b1", "b2"},
}
LEARNED_DECAYS["nominal"] = LEARNED_DECAYS["small_fc"]


def made(name):
    """The optimizer, small."""
    lopt = OPTIMIZERS[name].make()
    if isinstance(lopt, VeLO):
        return dataclasses.replace(lopt, lstm_hidden_size=4, param_inits=2)
    small = {"hidden_size": 4, "lstm_size": 4}
    known = {field.name for field in dataclasses.fields(lopt)}
    return dataclasses.replace(lopt, **{k: v for k, v in small.items() if k in known})


SOON = ("learnable_adam",)
"""Tested always; the others, which compile as long, among the slow tests."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SOON else [pytest.mark.slow])
        for name in (*OPTIMIZERS, "wrapped")
    ],
)
def test_an_outer_step_moves_theta_and_reports_learned_decays(name):
    lopt = ScheduledSteps(made("small_fc")) if name == "wrapped" else made(name)
    es = PES(num_pairs=2, chunk=2, truncation=4, lengths=EpisodeLengths(8, 8))
    training = MetaTraining.on(TASK, lopt, es, OuterOptimizer(warmup_steps=0), 2)
    first = training.init()
    before = jax.device_get(first.theta)
    state, metrics = training.step(first, {0: TASK.load_data()})
    assert float(metrics["skipped"]) == 0 and float(metrics["grad_norm"]) > 0
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.theta)
    assert any(jax.tree.leaves(moved))
    decays = {
        key.removeprefix("decay/"): float(metrics[key])
        for key in metrics
        if key.startswith("decay/")
    }
    assert set(decays) == LEARNED_DECAYS.get(
        "small_fc" if name == "wrapped" else name, set()
    )
    assert all(0.4 < x < 1 for x in decays.values())
