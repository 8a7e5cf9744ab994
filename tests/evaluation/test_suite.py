"""Suites: optimizers of each cell, their learning rates and parametrizations."""

import dataclasses

import jax
import numpy as np
import pytest

from evaluation import plan, run, suite
from evaluation.results import missing_runs
from lopt import Artifact, SmallFC
from parametrization import ADAM_LIKE, STANDARD
from tasks import MLP, Autoencoding, ImageClassification, Quadratic, TFDSImages, ViT
from tasks.suites import Cell, Suite


def suite_of(*cells, **fields):
    return Suite("mine", "for tests", lambda: cells, **fields)


def mlp(*widths, base_width=8):
    return ImageClassification(MLP(widths, base_width=base_width))


TRAINED = Cell("trained", "trained", mlp(8), 3)
WIDE = Cell("width 16", "width", mlp(16), 3)
SUITE = suite_of(TRAINED, WIDE)
LOPT = SmallFC(hidden_size=4, rules=ADAM_LIKE)


@pytest.fixture
def stubbed(monkeypatch):
    """Runs without training: Adam-like losses, best at rate 2^-5, seed in the loss."""
    calls = []

    def result(losses, num_steps):
        losses, num = np.asarray(losses), len(losses)
        return run.RunResult(
            curve=np.tile(losses[:, None], (1, num_steps)),
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
        return result([0.01 * seed for seed in seeds], num_steps)

    def evaluate_each(task, lopt, thetas, num_steps, seeds, dataset=None):
        rates = np.asarray(thetas["learning_rate"])
        calls.append((task, lopt, rates, tuple(seeds)))
        seed_losses = 0.01 * (np.asarray(seeds) % 1000)
        return result(0.1 + np.log2(rates * 32) ** 2 + seed_losses, num_steps)

    monkeypatch.setattr(run, "evaluate", evaluate)
    monkeypatch.setattr(run, "evaluate_each", evaluate_each)
    return calls


@pytest.fixture
def artifact():
    return Artifact(LOPT, LOPT.init(jax.random.key(0)), {"width": 4})


def test_a_suite_is_complete_ordered_and_tuned_on_other_seeds(stubbed, artifact):
    lines = []
    rows, tunings = suite.evaluate_suite(artifact, SUITE, None, report=lines.append)
    assert missing_runs(rows, plan.expected_runs(SUITE)) == []
    expected = list(plan.expected_runs(SUITE))
    assert [(row.cell, row.optimizer, row.seed) for row in rows] == expected
    assert len(lines) == 7
    assert [entry[:2] for entry in tunings] == [
        ("trained", plan.ADAM),
        ("trained", plan.ADAMW),
        ("trained", plan.SGDM),
        ("width 16", plan.ADAM),
    ]
    seeds = {frozenset(seeds) for *_, seeds in stubbed}
    assert seeds == {frozenset(plan.SEEDS), frozenset((1000, 1001, 1002))}


def test_optimizers_are_timed_alike(stubbed, artifact):
    """The reported runs of each are one program of exactly these seeds."""
    suite.evaluate_suite(artifact, suite_of(TRAINED, WIDE, aggregate=True), None)
    reported = [rates is None for *_, rates, seeds in stubbed if seeds == plan.SEEDS]
    assert len(reported) == 9 and all(reported)


def test_each_optimizer_runs_in_its_own_parametrization(stubbed, artifact):
    rows, _ = suite.evaluate_suite(artifact, SUITE, None)
    shown = {(row.optimizer, row.parametrization, row.base_width) for row in rows}
    assert shown == {
        (plan.LEARNED, "ADAM_LIKE", 4),  # the artifact's own base
        (plan.ADAM, "STANDARD", 8),
        (plan.ADAMW, "STANDARD", 8),
        (plan.SGDM, "STANDARD", 8),
        (plan.MU_ADAM, "ADAM_LIKE", 8),
    }


def test_transferred_adam_keeps_the_rate_of_the_trained_cell(stubbed, artifact):
    rows, _ = suite.evaluate_suite(artifact, SUITE, None)
    (about,) = {
        tuple(r.provenance.items()) for r in rows if r.optimizer == plan.MU_ADAM
    }
    about = dict(about)
    assert about["learning_rate"] == 2**-5
    assert about["tuned_at"] == "trained"
    assert about["tuning_runs"] == 0
    tuned = [row.provenance for row in rows if row.optimizer == plan.ADAM]
    assert {p["tuning_runs"] for p in tuned} == {90}


def test_a_failure_ends_the_suite(monkeypatch, stubbed, artifact):
    def fail(*args, **kwargs):
        raise RuntimeError("no such device")

    monkeypatch.setattr(suite, "tune", fail)
    with pytest.raises(RuntimeError, match="no such device"):
        suite.evaluate_suite(artifact, SUITE, None)


def test_away_from_its_base_shape_mu_adam_is_tuned_for_itself(stubbed, artifact):
    narrow = dataclasses.replace(TRAINED, task=mlp(8, base_width=1))
    rows, tunings = suite.evaluate_suite(artifact, suite_of(narrow, WIDE), None)
    tuned = [(t.cell, t.optimizer) for t in tunings]
    assert ("trained", plan.MU_ADAM_TUNED) in tuned
    assert ("trained", plan.ADAM) in tuned  # stays: differences are to it
    own = {r.parametrization for r in rows if r.optimizer == plan.MU_ADAM_TUNED}
    assert own == {"ADAM_LIKE"}
    # Tuning runs of μAdam in μP and with its rules; the other cell tunes only Adam.
    assert {task.model.base_width for task, lopt, *_ in stubbed if lopt != LOPT} == {
        1,
        8,
    }
    assert [t for t in tuned if t[0] == "width 16"] == [("width 16", plan.ADAM)]
    (about,) = {
        tuple(r.provenance.items()) for r in rows if r.optimizer == plan.MU_ADAM
    }
    assert dict(about)["tuned_at"] == "trained"
    # At a base shape it would be the same bits as Adam.
    assert plan.MU_ADAM_TUNED not in plan.optimizers(SUITE, TRAINED)
    assert plan.at_base(mlp(8)) and not plan.at_base(mlp(8, 16))
    assert plan.at_base(Quadratic())


def test_what_is_carried_is_the_tuning_of_mu_adam_not_of_adam(
    monkeypatch, stubbed, artifact
):
    original = suite.tune

    def tune(task, baseline, *args, **kwargs):
        tuning = original(task, baseline, *args, **kwargs)
        return dataclasses.replace(
            tuning, learning_rate=0.5 if baseline.rules is ADAM_LIKE else 0.25
        )

    monkeypatch.setattr(suite, "tune", tune)
    for base_width, expected in ((8, 0.25), (1, 0.5)):
        trained = dataclasses.replace(TRAINED, task=mlp(8, base_width=base_width))
        rows, _ = suite.evaluate_suite(artifact, suite_of(trained, WIDE), None)
        carried = [r.provenance for r in rows if r.optimizer == plan.MU_ADAM]
        assert {about["learning_rate"] for about in carried} == {expected}


def test_cells_of_any_task_without_a_trained_one(stubbed, artifact):
    cells = (
        Cell("bowl", "held_out", Quadratic(dimension=4), 3),
        Cell("codes", "held_out", Autoencoding(), 2),
    )
    rows, tunings = suite.evaluate_suite(artifact, suite_of(*cells), None)
    assert {r.optimizer for r in rows} == {plan.LEARNED, plan.ADAM}
    assert [t.cell for t in tunings] == ["bowl", "codes"]
    bowl, codes = (next(r for r in rows if r.cell == c.name) for c in cells)
    assert (bowl.widths, bowl.depth, bowl.base_width, bowl.batch_size) == (
        (),
        None,
        None,
        None,
    )
    assert (bowl.task, bowl.family, bowl.unit) == (
        "Quadratic",
        "Quadratic",
        "units of the height",
    )
    assert (codes.task, codes.family) == ("Autoencoding", "AutoEncoder")
    assert (codes.unit, codes.resolution) == ("squared deviations", "8×8×1")
    assert codes.loss_at_chance == Autoencoding().loss_at_chance
    assert (codes.base_width, codes.steps) == (4, 2)  # the artifact's own base


def test_adam_is_run_on_only_where_figures_over_all_cells_are_wanted(stubbed, artifact):
    wanted = suite_of(TRAINED, WIDE, aggregate=True)
    rows, tunings = suite.evaluate_suite(artifact, wanted, None)
    assert missing_runs(rows, plan.expected_runs(wanted)) == []
    long = [r for r in rows if r.optimizer == plan.ADAM_LONG]
    assert {(r.cell, r.steps, len(r.curve)) for r in long} == {
        ("trained", 12, 12),
        ("width 16", 12, 12),
    }
    assert {r.provenance["learning_rate"] for r in long} == {2**-5}
    assert plan.ADAM_LONG not in {t.optimizer for t in tunings}
    rows, _ = suite.evaluate_suite(artifact, SUITE, None)
    assert plan.ADAM_LONG not in {r.optimizer for r in rows}


def test_cells_that_cannot_run_are_left_out_with_a_reason(monkeypatch, artifact):
    monkeypatch.setenv("METATRAIN_DATA_DIR", "/nowhere")
    absent = Cell(
        "absent", "dataset", ImageClassification(MLP(), TFDSImages("cifar10")), 3
    )
    narrow = dataclasses.replace(artifact, base={"width": 2})
    codes = Cell("codes", "family", Autoencoding(), 3)
    given = suite_of(TRAINED, absent, codes, aggregate=True)
    left, skipped = plan.runnable(given, narrow)
    assert [cell.name for cell in left.cells] == ["trained"]
    assert left.aggregate and left.name == "mine"
    assert [cell for cell, _ in skipped] == ["absent", "codes"]
    assert "/nowhere" in skipped[0].reason
    assert "base_width = 2" in skipped[1].reason
    assert plan.runnable(SUITE, artifact)[1] == []
    with pytest.raises(ValueError, match="no cell to run"):
        suite.evaluate_suite(artifact, suite_of(), None)


def test_another_parametrization_leaves_a_landscape_as_it_is():
    assert plan.parametrize(Quadratic(), ADAM_LIKE, 4) == Quadratic()
    changed = plan.parametrize(mlp(16), STANDARD, 4)
    assert changed.model == MLP((16,), base_width=4, rules=STANDARD)
    assert plan.parametrize(mlp(16), STANDARD).model.base_width == 8


def test_an_optimizer_of_base_width_1_takes_a_transformer_along():
    # μLO's rule: a hidden step × 1/fan-in, attention × 1/size of a head.
    vit = ViT(width=32, head_dim=8, base_head_dim=8)
    model = vit.with_base_width(1)
    assert (model.base_width, model.base_head_dim, model.head_dim) == (1, 1, 8)
    assert ADAM_LIKE.attention_scale(model.head_dim, model.base_head_dim) == 1 / 8
    assert vit.with_base_width(12).base_head_dim == 4
    assert vit.with_base_width(64) == vit
