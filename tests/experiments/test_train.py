"""A run that is interrupted and continued is the run that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import train as training_command
from experiments.command_line import InputError
from experiments.presets import configs
from experiments.presets.serialization import encode
from experiments.run.run_directory import METRICS, VALIDATION, RunDirectory, read_rows
from experiments.run.training_state import load_trained
from experiments.train import train
from lopt.learned.celo import Celo
from lopt.learned.small_fc import SmallFC
from lopt.release.artifact import Artifact
from metatrain.estimators.pes import PES
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from tasks.classification import ImageClassification
from tasks.models.mlp import MLP

TINY = configs.TrainConfig(
    task=ImageClassification(MLP(widths=(4,), base_width=4), batch_size=8),
    lopt=SmallFC(hidden_size=3, step_mult=0.01),
    estimator=PES(num_pairs=2, chunk=1, truncation=4, lengths=EpisodeLengths(4, 12)),
    outer=OuterOptimizer(warmup_steps=2),
    num_steps=10,
    validation=configs.Validation(every=3, num_steps=5, num_seeds=2),
)


def options(directory, **fields):
    run = configs.RunOptions(
        directory=directory, checkpoint_every=5, log_every=4, **fields
    )
    return dataclasses.replace(TINY, run=run)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Ten outer steps without a stop."""
    path = tmp_path_factory.mktemp("straight") / "run"
    train(options(path), "tiny")
    return path


def final_state(path):
    return load_trained(path)[1]


def leaves_equal(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


@pytest.mark.slow
def test_five_steps_a_restart_and_five_are_ten_bit_for_bit(straight, tmp_path):
    path = tmp_path / "run"
    train(options(path, stop_after=5), "tiny")
    assert not (path / "artifact").exists()
    # Metrics written after the checkpoint, as by a killed process, must not stay.
    with (path / METRICS).open("a") as file:
        file.write('{"step": 6, "meta_loss": 123.0}\n{"step": 7, "met')
    train(options(path), "tiny")
    assert leaves_equal(final_state(path), final_state(straight))
    for name in (METRICS, VALIDATION):
        assert (path / name).read_text() == (straight / name).read_text()
    assert [row["step"] for row in read_rows(path / METRICS)] == list(range(1, 11))


def test_the_run_releases_its_best_validated_theta(straight):
    artifact = Artifact.load(straight / "artifact")
    rows = read_rows(straight / VALIDATION)
    best = min(rows, key=lambda row: row["held_out_loss"])
    assert artifact.provenance["best_step"] == best["step"]
    assert artifact.provenance["validation_loss"] == best["held_out_loss"]
    assert [row["step"] for row in rows if row["chosen"]][-1] == best["step"]
    assert leaves_equal(artifact.theta, final_state(straight).best.theta)
    assert artifact.base == {"width": 4, "depth": 1}


def test_a_finished_run_is_not_repeated(straight, capsys):
    before = (straight / METRICS).stat().st_mtime_ns
    train(options(straight), "tiny")
    assert "is trained" in capsys.readouterr().out
    assert len(read_rows(straight / METRICS)) == 10
    assert before <= (straight / METRICS).stat().st_mtime_ns


@pytest.mark.slow
def test_a_run_can_be_made_longer_and_its_artifact_follows(tmp_path):
    path = tmp_path / "run"
    train(dataclasses.replace(options(path), num_steps=3), "tiny")
    assert Artifact.load(path / "artifact").provenance["outer_steps"] == 3
    train(dataclasses.replace(options(path), num_steps=4), "tiny")
    assert Artifact.load(path / "artifact").provenance["outer_steps"] == 4
    with pytest.raises(InputError, match="num_steps: 4 -> 3; a run can only"):
        train(dataclasses.replace(options(path), num_steps=3), "tiny")


def test_another_configuration_is_refused_with_what_differs(straight):
    estimator = dataclasses.replace(TINY.estimator, sigma=0.5)
    other = dataclasses.replace(options(straight), estimator=estimator, seed=3)
    with pytest.raises(InputError) as error:
        train(other, "tiny")
    assert "estimator.sigma: 0.01 -> 0.5" in str(error.value)
    assert "seed: 0 -> 3" in str(error.value)
    assert "\n" not in str(error.value)


def test_display_and_logging_may_change(straight):
    run = dataclasses.replace(options(straight).run, log_every=1, keep_checkpoints=1)
    train(dataclasses.replace(TINY, run=run), "tiny")
    stored = json.loads((straight / "config.json").read_text())
    assert stored["run"]["log_every"] == 1


def test_a_directory_in_use_is_refused(tmp_path):
    with (
        RunDirectory(tmp_path / "run"),
        pytest.raises(InputError, match=f"in use by process {os.getpid()}"),
    ):
        train(options(tmp_path / "run"), "tiny")
    with RunDirectory(tmp_path / "run") as free:
        free.claim(encode(TINY))


@pytest.mark.parametrize("name", ["config.json", METRICS])
def test_a_damaged_record_is_named(straight, tmp_path, name):
    path = tmp_path / "run"
    subprocess.run(["cp", "-r", straight, path], check=True)
    text = (path / name).read_text()
    (path / name).write_text("{" + text)
    with pytest.raises(InputError, match=f"{path / name} is damaged"):
        train(options(path), "tiny")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=os.path.getsize)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(straight, tmp_path, capsys):
    path = tmp_path / "run"
    subprocess.run(["cp", "-r", straight, path], check=True)
    flip(largest_file(path / "checkpoints" / "step_00000010"))
    train(options(path), "tiny")
    assert "checkpoint of step 10 is skipped" in capsys.readouterr().err
    assert leaves_equal(final_state(path), final_state(straight))
    assert (path / METRICS).read_text() == (straight / METRICS).read_text()


def test_if_all_checkpoints_are_damaged_nothing_starts_anew(straight, tmp_path):
    path = tmp_path / "run"
    subprocess.run(["cp", "-r", straight, path], check=True)
    for step in (path / "checkpoints").glob("step_*"):
        flip(largest_file(step))
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
        train(options(path), "tiny")
    assert len(read_rows(path / METRICS)) == 10


def copy_of(straight, tmp_path):
    path = tmp_path / "run"
    subprocess.run(["cp", "-r", straight, path], check=True)
    return path


def test_a_users_file_in_the_artifact_folder_is_not_deleted(straight, tmp_path, capsys):
    path = copy_of(straight, tmp_path)
    (path / "artifact" / "NOTES.md").write_text("mine")
    (path / "artifact" / "config.json").write_text("{}")
    train(options(path), "tiny")
    assert "NOTES.md: it is left as it is" in capsys.readouterr().out
    assert (path / "artifact" / "NOTES.md").read_text() == "mine"


@pytest.mark.slow
def test_a_failed_release_keeps_the_artifact_before_it(straight, tmp_path, monkeypatch):
    path = copy_of(straight, tmp_path)
    before = (path / "artifact" / "SHA256SUMS").read_bytes()

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lopt.release.artifact.save_file", full_disk)
    with pytest.raises(InputError, match="No space left"):
        train(dataclasses.replace(options(path), num_steps=11), "tiny")
    assert (path / "artifact" / "SHA256SUMS").read_bytes() == before
    Artifact.load(path / "artifact")


def test_a_run_without_its_checkpoints_does_not_start_anew(straight, tmp_path):
    path = copy_of(straight, tmp_path)
    subprocess.run(["rm", "-r", path / "checkpoints"], check=True)
    with pytest.raises(InputError, match="checkpoints is missing, though 10 steps"):
        train(options(path), "tiny")
    assert len(read_rows(path / METRICS)) == 10


def test_a_folder_where_nothing_was_recorded_takes_any_configuration(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        directory.claim(encode(TINY))
        directory.claim(encode(dataclasses.replace(TINY, seed=5)))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["seed"] == 5


@pytest.mark.parametrize("text", ["{}", "[" * 100_000, '{"num_steps": "x"}', "\xff"])
def test_a_configuration_with_other_content_is_refused(straight, tmp_path, text):
    path = copy_of(straight, tmp_path)
    (path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"config.json"):
        train(options(path), "tiny")


COMMAND = [sys.executable, "-m", "experiments.train", "quickstart"]
SMALL = [
    "--task.model.widths",
    "4",
    "--task.model.base-width",
    "4",
    "--task.batch-size",
    "8",
    "--lopt.hidden-size",
    "3",
    "--estimator.num-pairs",
    "2",
    "--estimator.truncation",
    "4",
    "--estimator.lengths.minimum",
    "4",
    "--estimator.lengths.maximum",
    "12",
    "--validation.num-steps",
    "5",
    "--num-steps",
    "1000",
]


def command(directory):
    flags = ["--run.directory", str(directory), "--run.checkpoint-every", "50"]
    return [*COMMAND, *SMALL, *flags]


@pytest.fixture(scope="module")
def not_signalled(tmp_path_factory):
    """A process that nothing stopped."""
    directory = tmp_path_factory.mktemp("straight")
    subprocess.run(command(directory), check=True, capture_output=True)
    return directory


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.optimized),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signalled_process_goes_on_bit_for_bit(not_signalled, tmp_path, number):
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        command(stopped), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    checkpoints = stopped / "checkpoints"
    while not list(checkpoints.glob("step_*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    subprocess.run(command(stopped), check=True, capture_output=True)
    assert leaves_equal(final_state(not_signalled), final_state(stopped))
    texts = [(path / METRICS).read_text() for path in (not_signalled, stopped)]
    assert texts[0] == texts[1]


class BegunError(Exception):
    """Everything is prepared; the first step is not wanted."""


@pytest.mark.parametrize("start", ["zero", "lecun"])
def test_tensors_that_the_rule_hardly_moves_are_named(
    start, tmp_path, monkeypatch, capsys
):
    def stop(*_):
        raise BegunError

    monkeypatch.setattr(training_command, "resume", stop)
    config = dataclasses.replace(
        TINY,
        task=TINY.task.with_readout_init(start),
        lopt=Celo(lstm_hidden_size=2),
        run=options(tmp_path / "run").run,
    )
    with pytest.raises(BegunError):
        train(config, "tiny")
    warned = "readout/kernel" in capsys.readouterr().err
    assert warned == (start == "zero")
