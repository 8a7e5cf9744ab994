"""A suite: who runs where, with which learning rate, in which parametrization."""

import dataclasses

import jax
import numpy as np
import pytest

from evaluation import run, suite
from evaluation.results import missing_runs
from lopt import Artifact, SmallFC
from parametrization import ADAM_LIKE
from tasks import MLP, ImageClassification
from tasks.suites import Cell

SUITE = (
    Cell("trained", "trained", ImageClassification(MLP((8,), base_width=8)), 3),
    Cell("width 16", "width", ImageClassification(MLP((16,), base_width=8)), 3),
)
LOPT = SmallFC(hidden_size=4, rules=ADAM_LIKE)


@pytest.fixture
def stubbed(monkeypatch):
    """Runs without training: Adam-like losses, best at rate 2^-5, seed in the loss."""
    calls = []

    def result(losses):
        losses, num = np.asarray(losses), len(losses)
        return run.RunResult(
            curve=np.tile(losses[:, None], (1, 3)),
            **dict.fromkeys(
                ("mean_loss", "final_loss", "valid_loss", "test_loss", "seconds"),
                losses,
            ),
            **dict.fromkeys(("valid_accuracy", "test_accuracy"), np.full(num, 0.5)),
            diverged=np.zeros(num, bool),
            capped_steps=np.zeros(num, int),
        )

    def evaluate(task, lopt, theta, num_steps, seeds, dataset=None):
        calls.append((task, lopt, None, tuple(seeds)))
        return result([0.01 * seed for seed in seeds])

    def evaluate_each(task, lopt, thetas, num_steps, seeds, dataset=None):
        rates = np.asarray(thetas["learning_rate"])
        calls.append((task, lopt, rates, tuple(seeds)))
        return result(
            0.1 + np.log2(rates * 32) ** 2 + 0.01 * (np.asarray(seeds) % 1000)
        )

    monkeypatch.setattr(run, "evaluate", evaluate)
    monkeypatch.setattr(run, "evaluate_each", evaluate_each)
    return calls


@pytest.fixture
def artifact():
    return Artifact(LOPT, LOPT.init(jax.random.key(0)), {"width": 4})


def test_a_suite_is_complete_ordered_and_tuned_on_other_seeds(stubbed, artifact):
    lines = []
    rows, tunings = suite.evaluate_suite(artifact, SUITE, None, report=lines.append)
    assert missing_runs(rows, suite.expected_runs(SUITE)) == []
    expected = list(suite.expected_runs(SUITE))
    assert [(row.cell, row.optimizer, row.seed) for row in rows] == expected
    assert len(lines) == 7
    assert [entry[:2] for entry in tunings] == [
        ("trained", suite.ADAM),
        ("trained", suite.ADAMW),
        ("trained", suite.SGDM),
        ("width 16", suite.ADAM),
    ]
    seeds = {frozenset(seeds) for *_, seeds in stubbed}
    assert seeds == {frozenset(suite.SEEDS), frozenset((1000, 1001, 1002))}


def test_each_optimizer_runs_in_its_own_parametrization(stubbed, artifact):
    rows, _ = suite.evaluate_suite(artifact, SUITE, None)
    shown = {(row.optimizer, row.parametrization, row.base_width) for row in rows}
    assert shown == {
        (suite.LEARNED, "ADAM_LIKE", 4),  # the artifact's own base
        (suite.ADAM, "STANDARD", 8),
        (suite.ADAMW, "STANDARD", 8),
        (suite.SGDM, "STANDARD", 8),
        (suite.MU_ADAM, "ADAM_LIKE", 8),
    }


def test_transferred_adam_keeps_the_rate_of_the_trained_cell(stubbed, artifact):
    rows, _ = suite.evaluate_suite(artifact, SUITE, None)
    (about,) = {
        tuple(r.provenance.items()) for r in rows if r.optimizer == suite.MU_ADAM
    }
    about = dict(about)
    assert about["learning_rate"] == 2**-5
    assert about["tuned_at"] == "trained"
    assert about["tuning_runs"] == 0
    tuned = [row.provenance for row in rows if row.optimizer == suite.ADAM]
    assert {p["tuning_runs"] for p in tuned} == {90}


def test_a_failure_ends_the_suite(monkeypatch, stubbed, artifact):
    def fail(*args, **kwargs):
        raise RuntimeError("no such device")

    monkeypatch.setattr(suite, "tune", fail)
    with pytest.raises(RuntimeError, match="no such device"):
        suite.evaluate_suite(artifact, SUITE, None)


def test_suites_without_a_clear_trained_cell_are_refused(artifact):
    with pytest.raises(ValueError, match="0 trained cells"):
        suite.evaluate_suite(artifact, SUITE[1:], None)
    wide = dataclasses.replace(SUITE[1], axis="trained")
    with pytest.raises(ValueError, match="2 trained cells"):
        suite.evaluate_suite(artifact, (SUITE[0], wide), None)
