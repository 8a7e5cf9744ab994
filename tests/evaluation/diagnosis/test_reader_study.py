"""A study of readers and a model: its figures, tables and command."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from evaluation.diagnosis.agreement import (
    cohen_kappa,
    fleiss_kappa,
    mean_pairwise_kappa,
)
from evaluation.diagnosis.auc import Comparison, auc, delong
from evaluation.diagnosis.reader_study import Study, diagnose, dichotomy_name
from evaluation.diagnosis.readers import PANEL, read_panel
from evaluation.diagnosis.report import format_comparison, plot_study, text_report
from evaluation.report.plots import png
from experiments import diagnose as command
from lopt import Artifact, SmallFC
from parametrization import STANDARD

N, VIEWS, NUM = 90, 3, 200


@pytest.fixture(scope="module")
def study():
    """Patients in order with shuffled images, and an informed model."""
    rng = np.random.default_rng(0)
    grade = rng.permutation(np.repeat(np.arange(4), [36, 27, 18, 9]))
    looks = grade / 3 + 0.4 * rng.normal(size=N)
    rows = rng.permutation(np.repeat(np.arange(N), VIEWS))
    seen = looks[rows] + 0.1 * rng.normal(size=len(rows))
    logits = 6 * (seen[:, None] - np.array([0.3, 0.6, 0.9]))
    return Study(
        grade, read_panel(PANEL, looks), logits.astype(np.float32), rows, looks
    )


@pytest.fixture(scope="module")
def result(study):
    return diagnose(study, NUM)


def test_a_patient_s_score_is_the_mean_of_the_images(study):
    means = study.patient_logits()
    assert means.shape == (N, 3) and study.num_grades == 4
    for patient in (0, 17, N - 1):
        rows = [i for i, owner in enumerate(study.patient_of_rows) if owner == patient]
        assert len(rows) == VIEWS
        want = np.mean([study.image_logits[row] for row in rows], axis=0)
        np.testing.assert_allclose(means[patient], want, rtol=1e-6)


@pytest.mark.parametrize("k", range(3))
def test_a_dichotomy_s_figures_are_those_of_its_patients(study, result, k):
    part, above = result.dichotomies[k], study.grade > k
    assert part.num_positive == (54, 27, 9)[k]
    scores = study.patient_logits().min(1) if k == 2 else study.patient_logits()[:, k]
    assert part.model.value == pytest.approx(auc(above, scores))
    assert part.ceiling.value == pytest.approx(auc(above, study.ceiling))
    for i, estimate in enumerate(part.readers):
        sessions = [auc(above, study.readings[s, i]) for s in (0, 1)]
        assert estimate.value == pytest.approx(np.mean(sessions))
    values = [estimate.value for estimate in part.readers]
    assert part.readers_mean.value == pytest.approx(np.mean(values))
    assert part.best == np.argmax(values)
    assert part.versus_mean.difference == pytest.approx(
        part.model.value - np.mean(values)
    )
    # The paired test against one reader: the model and both readings, by DeLong.
    three = delong(above, np.stack([scores, *study.readings[:, part.best]]))
    assert part.versus_best.p_value == pytest.approx(
        three.compare(0, [0.0, 0.5, 0.5]).p_value, rel=1e-6
    )
    called = [[reading > k for reading in session] for session in study.readings]
    assert part.kappa == pytest.approx(
        np.mean([mean_pairwise_kappa(session, 2) for session in called])
    )
    assert part.fleiss.value == pytest.approx(fleiss_kappa(called[0], 2))
    assert part.fleiss.low < part.fleiss.value < part.fleiss.high


def test_images_as_units_would_claim_too_much(study, result):
    # Three images that show the same: √3 times too narrow, if the bootstrap of the
    # patients (200 resamples: 5 %) and DeLong agree on what is right.
    for k, part in enumerate(result.dichotomies):
        naive, right = part.images_naive, part.images_clustered
        rows = study.patient_of_rows
        single = auc((study.grade > k)[rows], study.image_logits[:, k])
        # Two programs over the same rows: the same up to rounding in float32.
        assert naive.value == pytest.approx(right.value, abs=1e-7)
        assert right.value == pytest.approx(single, abs=1e-6)
        ratio = right.standard_error / naive.standard_error
        assert ratio == pytest.approx(math.sqrt(VIEWS), rel=4.5 / math.sqrt(2 * NUM))


def test_kappas_of_the_grades(study, result):
    grades = (study.patient_logits() > 0).sum(1)
    first, second = study.readings
    assert result.model_kappa.value == pytest.approx(
        cohen_kappa(grades, study.grade, 4, "quadratic")
    )

    def kappa(a, b):
        return cohen_kappa(a, b, 4, "quadratic")

    wants = {
        "between_readers": np.mean(
            [mean_pairwise_kappa(s, 4, "quadratic") for s in study.readings]
        ),
        "within_readers": np.mean([kappa(first[i], second[i]) for i in range(6)]),
        "model_with_readers": np.mean(
            [kappa(grades, reading) for reading in (*first, *second)]
        ),
    }
    for name, want in wants.items():
        assert getattr(result, name) == pytest.approx(want), name
    against = [kappa(study.grade, session[4]) for session in (first, second)]
    assert result.reader_kappas[4] == pytest.approx(np.mean(against))
    assert result.num_patients == N
    once = study._replace(readings=study.readings[:1])
    assert diagnose(once, 2).within_readers is None


def test_the_report_says_its_unit_and_the_figure_is_a_picture(study, result):
    text = text_report(result)
    assert "unit: the patient (90 of the test split)" in text
    first = result.dichotomies[0]
    for needle in (
        *("S0 | S1-3", "S0-1 | S2-3", "S0-2 | S3", "54 of 90"),
        *(str(first.model), f"{first.readers[first.best]!s} *"),
        format_comparison(first.versus_mean),
    ):
        assert needle in text
    assert max(map(len, text.splitlines())) <= 110
    images = [np.zeros((3, 8, 8), np.uint8)] * 4
    figure = png(plot_study(study, result, images), dpi=60)
    assert figure.startswith(b"\x89PNG") and len(figure) > 5000


def test_names_and_comparisons_are_readable():
    assert [dichotomy_name(k, 3) for k in range(2)] == ["S0 | S1-2", "S0-1 | S2"]
    compare = Comparison(-0.125, 0.1, -0.3, 0.05, 0.2)
    assert format_comparison(compare) == "-0.12 [-0.30, +0.05] p = .200"
    unknown = dataclasses.replace(compare, p_value=math.nan)
    assert format_comparison(unknown) == "-0.12"
    certain = dataclasses.replace(compare, p_value=1e-9)
    assert format_comparison(certain).endswith("p < .001")


TINY = [
    *("--data.size", "8", "--data.num-train", "60", "--data.num-test", "40"),
    *("--model.width", "8", "--model.base-width", "8", "--model.multipliers", "1"),
    *("--model.strides", "2", "--num-steps", "30", "--num-resamples", "100"),
]


def run(monkeypatch, capsys, out_dir, *arguments):
    monkeypatch.setattr("sys.argv", ["diagnose", *arguments, "--out-dir", str(out_dir)])
    command.main()
    text = (out_dir / "diagnosis.json").read_text()
    assert (out_dir / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    return capsys.readouterr().out, json.loads(text, parse_constant=pytest.fail)


def test_the_command_writes_and_prints(monkeypatch, capsys, tmp_path):
    # Without training, which takes most of the time: the model knows nothing.
    def untrained(task, lopt, theta, num_steps, seed, dataset):
        assert (num_steps, seed, task.width) == (30, 0, 8)
        return jax.jit(task.init)(jax.random.key(0)), np.full(num_steps, 0.5)

    monkeypatch.setattr(command, "train", untrained)
    out, stored = run(monkeypatch, capsys, tmp_path, *TINY)
    assert "unit: the patient (40 of the test split)" in out and "chance 0.5" in out
    assert stored["unit"] == "patient" and stored["config"]["data"]["num_test"] == 40
    # Of 48 patients to train on 10 % are S3, of the 6 of outer_valid one is.
    above, seen = np.array([29, 15, 5]) / 48, np.array([4, 2, 1]) / 6
    want = -np.mean(seen * np.log(above) + (1 - seen) * np.log1p(-above))
    assert stored["losses"]["outer_valid"] == pytest.approx(want, rel=1e-5)
    (first, *_) = stored["result"]["dichotomies"]
    assert first["name"] == "S0 | S1-3"
    # All patients have one score: an AUC of ½, with an error that is known.
    assert first["model"]["value"] == 0.5 and first["model"]["standard_error"] == 0
    assert 0.5 < first["readers_mean"]["value"] < first["ceiling"]["value"]


def test_a_learned_optimizer_brings_its_parametrization(tmp_path):
    lopt = SmallFC(hidden_size=4, rules=STANDARD)
    shapes = jax.eval_shape(lopt.init, jax.random.key(0))
    theta = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)
    Artifact(lopt, theta, {"width": 8}).save(tmp_path / "artifact")
    config = command.DiagnoseConfig(artifact=tmp_path / "artifact")
    loaded, weights, rules = command.optimizer(config)
    assert loaded == lopt and rules is STANDARD is not config.model.rules
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, weights, theta)))
    adam, rate, rules = command.optimizer(command.DiagnoseConfig(learning_rate=0.25))
    assert adam.rules is rules is config.model.rules and adam.schedule == "cosine"
    assert float(rate["learning_rate"]) == 0.25


@pytest.mark.slow
def test_a_trained_model_sees_nearly_all_there_is(monkeypatch, capsys, tmp_path):
    _, stored = run(monkeypatch, capsys, tmp_path)
    losses = stored["losses"]
    assert losses["last 20 batches"] < losses["outer_valid"] < losses["chance"]
    for part in stored["result"]["dichotomies"]:
        model, ceiling = part["model"]["value"], part["ceiling"]["value"]
        assert abs(model - ceiling) < 0.05
        # As the study's caution has it: the wrong unit halves the interval.
        naive, right = part["images_naive"], part["images_clustered"]
        assert naive["standard_error"] < 0.65 * right["standard_error"]
    assert stored["result"]["dichotomies"][0]["versus_mean"]["low"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--artifact", "/nowhere"], "--artifact /nowhere is not a folder"),
        (["--num-steps", "0"], "num_steps = 0 must be a whole number in"),
        (["--num-resamples", "99"], "num_resamples = 99 must be at least 100"),
        (["--learning-rate", "0"], "learning_rate = 0.0 must be positive"),
        (["--data.num-test", "3"], "num_test = 3 must be at least 4"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, arguments, message):
    monkeypatch.setattr("sys.argv", ["diagnose", *arguments])
    with pytest.raises(command.command_line.InputError) as error:
        command.main()
    assert message in str(error.value) and "\n" not in str(error.value)
