"""Damaged records, checkpoints, data and configurations: refused before the start."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import command_line
from experiments import train as training_command
from experiments.command_line import BAD_INPUT, InputError
from experiments.presets.configs import TrainConfig, presets
from experiments.presets.serialization import decode, digest_of, encode
from experiments.run.run_directory import (
    METRICS,
    VALIDATION,
    RunDirectory,
    read_rows,
    write_parent,
)
from experiments.run.training_state import load_trained
from experiments.train import train
from lopt.release.artifact import Artifact
from metatrain.checkpoint import Checkpoints
from tests.experiments.tiny_run import options, same_run
from tests.special_files import SPECIAL, put


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Ten outer steps without a stop."""
    path = tmp_path_factory.mktemp("straight") / "run"
    train(options(path), "tiny")
    return path


@pytest.fixture
def copy(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    return tmp_path / "run"


def refused(directory, capfd):
    """The one line that a run ends with before it compiles anything."""
    with pytest.raises(SystemExit) as stop:
        command_line.run(lambda: train(options(directory), "tiny") and None)
    out, error = capfd.readouterr()
    assert stop.value.code == BAD_INPUT and "compiling" not in out
    *warnings, line = error.splitlines()
    assert line.startswith("error: "), error
    assert all(warning.startswith("warning: ") for warning in warnings)
    return line


def test_a_record_cut_anywhere_loses_at_most_its_last_line(tmp_path):
    rows = [{"step": step, "meta_loss": 1 / step} for step in range(1, 5)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / METRICS
    for cut in range(len(text) + 1):
        path.write_bytes(text[:cut])
        whole = text[:cut].count(b"\n")
        assert read_rows(path) in (rows[:whole], rows[: whole + 1])
        if (
            whole and cut % 5 == 0
        ):  # what is dropped is done again, and no step stands there twice
            with RunDirectory(tmp_path) as directory:
                directory.truncate_after(whole)
                assert read_rows(path) == rows[:whole]
                directory.append(METRICS, rows[whole:])
            assert path.read_bytes() == text
    for tail in (b"\0" * 4096, b"\xff", b"{}", b"[1]", b"1e", b'{"step": "9"}'):
        path.write_bytes(text + tail)
        if tail != b"\xff":
            assert read_rows(path) == rows
        with pytest.raises(InputError, match=f"{METRICS} is damaged"):
            path.write_bytes(text + tail + b"\n" + text)
            read_rows(path)


@pytest.mark.parametrize("change", ["missing", "hole", "twice", "order"])
def test_records_that_do_not_reach_the_checkpoint_are_refused(copy, capfd, change):
    lines = (copy / METRICS).read_text().splitlines(keepends=True)
    changed = {
        "missing": [],
        "hole": lines[:3] + lines[4:],
        "twice": lines[:5] + lines[4:],
        "order": lines[1::-1] + lines[2:],
    }
    (copy / METRICS).write_text("".join(changed[change]))
    (copy / "checkpoints" / "step_00000010" / "tree.json").unlink()
    error = refused(copy, capfd)
    assert f"{copy / METRICS} does not hold the steps 1 to 8 of the checkpoint" in error


def test_all_checkpoints_bad_is_a_stop_and_no_fresh_start(copy, capfd):
    for step in Checkpoints(copy / "checkpoints").steps():
        sums = copy / "checkpoints" / f"step_{step:08d}" / "SHA256SUMS"
        sums.write_text(sums.read_text().replace("a", "b"))
    before = {p.name: p.read_bytes() for p in copy.glob("*.jsonl")}
    error = refused(copy, capfd)
    assert f"no checkpoint in {copy / 'checkpoints'} is whole" in error
    for step in (4, 8, 10):
        assert f"checkpoint of step {step} is skipped: " in error
    assert {p.name: p.read_bytes() for p in copy.glob("*.jsonl")} == before


def test_a_checkpoint_of_something_else_is_refused_before_use(copy, capfd):
    _, state, _ = load_trained(copy)
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), state.outer.average)
    other = state._replace(outer=state.outer._replace(average=half))
    run = digest_of(encode(options(copy)))
    Checkpoints(copy / "checkpoints", run=run).save(12, other)
    error = refused(copy, capfd)
    assert "step_00000012 does not fit this run: 2 leaves differ" in error
    for name in ("log_learning_rate", "log_momentum_complement"):
        wanted = f".outer.average['{name}']: stored float16[], expected float32[]"
        assert wanted in error
    assert Checkpoints(copy / "checkpoints").steps()[-1] == 12


def test_a_fallback_goes_on_from_the_step_before_and_says_so(copy, straight, capfd):
    (copy / "checkpoints" / "step_00000010" / "tree.json").write_text("{")
    train(options(copy), "tiny")
    error = capfd.readouterr().err
    assert error.startswith("warning: checkpoint of step 10 is skipped: ")
    assert f"{copy / 'checkpoints' / 'step_00000010' / 'tree.json'} is damaged" in error
    assert same_run(copy, straight)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_a_folder_in_the_place_of_a_file_is_named(copy, capfd, name):
    (copy / name).unlink()
    (copy / name).mkdir()
    assert str(copy / name) in refused(copy, capfd)


@pytest.mark.parametrize("name", [METRICS, VALIDATION, "timing.jsonl", ".lock"])
@pytest.mark.parametrize("kind", [*SPECIAL, "link"])
def test_a_record_that_is_no_file_is_named_and_never_waited_for(tmp_path, name, kind):
    path = tmp_path / "run"
    rows = [{"step": step} for step in range(1, 4)]
    with RunDirectory(path) as directory:
        for record in (METRICS, VALIDATION, "timing.jsonl"):
            directory.append(record, rows)
    if kind == "link":
        (path / name).rename(tmp_path / "elsewhere")
        (path / name).symlink_to(tmp_path / "elsewhere")
    else:
        put(path / name, kind)
    what = "link" if kind == "device" else kind  # it is put there as a link
    refusal = pytest.raises(InputError, match=f"{path / name}.*is a {what}, not a file")
    with refusal, RunDirectory(path) as directory:
        directory.truncate_after(2, [1, 2])
    if kind == "link" and name != ".lock":
        refusal = pytest.raises(InputError, match=f"{path / name} cannot be written")
        with RunDirectory(path) as directory, refusal:
            directory.append(name, rows)
        assert read_rows(tmp_path / "elsewhere") == rows


def test_a_record_of_gigabytes_is_not_held_in_memory(tmp_path):
    put(tmp_path / METRICS, "3,000,000,000 bytes")
    tracemalloc.start()
    refusal = pytest.raises(InputError, match=f"{METRICS} is damaged in line 1")
    with RunDirectory(tmp_path) as directory, refusal:
        directory.truncate_after(2)
    (tmp_path / METRICS).unlink()
    rows = [{"step": step, "skipped": 1.0} for step in range(1, 4001)]
    with RunDirectory(tmp_path) as directory:
        directory.append(METRICS, rows)
        del rows
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        directory.truncate_after(3999)
        assert directory.skipped_in_a_row() == 3999
        # The rows take about 1 MB.
        assert tracemalloc.get_traced_memory()[1] - before < 3e5
    tracemalloc.stop()


def test_a_backup_of_hard_links_keeps_its_records(tmp_path):
    rows = [{"step": step} for step in range(1, 4)]
    with RunDirectory(tmp_path / "run") as directory:
        directory.append(METRICS, rows)
        os.link(tmp_path / "run" / METRICS, tmp_path / "backup")
        directory.truncate_after(2)
        directory.append(METRICS, [{"step": 3, "other": True}])
    assert read_rows(tmp_path / "backup") == rows


def test_no_record_is_shortened_unless_all_can_be(tmp_path):
    with RunDirectory(tmp_path) as directory:
        directory.append(METRICS, [{"step": step} for step in range(1, 4)])
        before = (tmp_path / METRICS).read_bytes()
        with pytest.raises(InputError, match="does not hold the validation of step 2"):
            directory.truncate_after(2, [2])
        assert (tmp_path / METRICS).read_bytes() == before


@pytest.mark.parametrize("instead", ["file", "empty", "leavings"])
def test_steps_on_record_without_any_checkpoint_are_no_fresh_start(
    copy, capfd, instead
):
    shutil.rmtree(copy / "checkpoints")
    if instead == "file":
        (copy / "checkpoints").write_text("")
    else:
        (copy / "checkpoints").mkdir()
    if instead == "leavings":
        (copy / "checkpoints" / ".step_00000012-abcdefgh").mkdir()
    before = (copy / METRICS).read_bytes()
    error = refused(copy, capfd)
    assert f"{copy / 'checkpoints'} holds none, though 10 steps are recorded" in error
    assert (copy / METRICS).read_bytes() == before


def test_a_larger_distance_of_checkpoints_does_not_hide_that_they_are_gone(copy, capfd):
    shutil.rmtree(copy / "checkpoints")
    stored = json.loads((copy / "config.json").read_text())
    stored["run"]["checkpoint_every"] = 1000
    (copy / "config.json").write_text(json.dumps(stored))
    assert "is missing, though 10 steps are recorded" in refused(copy, capfd)


def test_another_run_s_checkpoints_are_not_taken_for_its_own(copy, capfd, tmp_path):
    other = dataclasses.replace(options(tmp_path / "other", stop_after=4), seed=1)
    train(other, "tiny")
    shutil.rmtree(copy / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", copy / "checkpoints")
    capfd.readouterr()
    error = refused(copy, capfd)
    assert f"no checkpoint in {copy / 'checkpoints'} is whole" in error
    assert "step_00000004/origin.json: it is of run " in error


@pytest.mark.parametrize("cut", [3, 6, 10])
def test_a_lost_validation_is_refused(copy, capfd, cut):
    rows = read_rows(copy / VALIDATION)
    kept = [json.dumps(row) + "\n" for row in rows if row["step"] != cut]
    assert len(kept) == len(rows) - 1
    (copy / VALIDATION).write_text("".join(kept))
    wanted = f"{copy / VALIDATION} does not hold the validation of step {cut}, though"
    assert wanted in refused(copy, capfd)


def test_steps_that_moved_nothing_are_counted_across_a_stop(tmp_path):
    with RunDirectory(tmp_path) as directory:
        assert directory.skipped_in_a_row() == 0
        skipped = [1.0, 0.0, 1.0, 1.0]
        rows = [{"step": i, "skipped": x} for i, x in enumerate(skipped, start=1)]
        directory.append(METRICS, rows[:2])
        assert directory.skipped_in_a_row() == 0
        directory.append(METRICS, rows[2:])
        assert directory.skipped_in_a_row() == 2


def test_a_record_of_an_earlier_start_makes_no_parent(copy):
    shutil.rmtree(copy / "artifact")
    write_parent(copy, {"path": "elsewhere"})
    train(options(copy), "tiny")
    assert "parent" not in Artifact.load(copy / "artifact").provenance


def test_names_and_locks_that_are_no_text_are_one_line(tmp_path):
    with pytest.raises(InputError, match="a name that is not UTF-8"):
        RunDirectory(tmp_path / os.fsdecode(b"run\xff"))
    with RunDirectory(tmp_path / "run"):
        (tmp_path / "run" / ".lock").write_bytes(b"\xff\xfe")
        with pytest.raises(InputError, match="is in use by process"):
            RunDirectory(tmp_path / "run")
    with pytest.raises(ValueError, match=r"run.directory = '\.' must name a folder"):
        options(Path(""))


# Configurations.


@pytest.mark.parametrize(
    "names",
    [["quickstart", "mulo_s"], pytest.param([*presets()], marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_a_preset_is_the_same_after_storing_and_reading(names):
    for name in names:
        config = presets()[name][1]()
        stored = json.loads(json.dumps(encode(config), allow_nan=False))
        again = decode(TrainConfig, stored)
        assert again == config and hash(again) == hash(config), name
        assert encode(again) == stored


def test_an_older_configuration_is_refused_with_the_field_it_lacks(copy, capfd):
    stored = json.loads((copy / "config.json").read_text())
    del stored["objective"]["cap"]
    stored["outer"]["b3"] = 0.5
    (copy / "config.json").write_text(json.dumps(stored))
    error = refused(copy, capfd)
    assert "objective.cap: absent -> 1.5" in error
    assert "outer.b3: 0.5 -> absent" in error
    with pytest.raises(InputError, match=r"config.json\.outer\.b3 is not a field"):
        load_trained(copy)


# Data.


def run_on(dataset, folder, tmp_path, monkeypatch, capfd):
    """The one line of a run on a dataset in a folder."""
    arguments = ["tfds_images", "--task.data.name", dataset, "--task.data.size", "8"]
    where = ["--data-dir", str(folder), "--run.directory", str(tmp_path / "run")]
    monkeypatch.setenv(command_line.DATA_DIR, str(folder))
    monkeypatch.setenv("METATRAIN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["train", *arguments, *where])
    with pytest.raises(SystemExit) as stop:
        command_line.run(training_command.main)
    out, error = capfd.readouterr()
    assert stop.value.code == BAD_INPUT and "compiling" not in out
    assert error.startswith("error: ") and error.count("\n") == 1, error
    recorded = tmp_path / "run" / METRICS
    assert not recorded.exists()
    return error


def test_a_missing_dataset_is_refused_at_the_start(tmp_path, monkeypatch, capfd):
    (tmp_path / "data").mkdir()
    error = run_on("cifar10", tmp_path / "data", tmp_path, monkeypatch, capfd)
    assert "cifar10" in error and str(tmp_path / "data") in error
    assert "tfds build cifar10" in error  # how to get it


@pytest.mark.parametrize(
    "damage", ["truncated", pytest.param("flipped", marks=pytest.mark.slow), "missing"]
)
def test_a_damaged_dataset_is_refused_at_the_start(
    data_dir, tmp_path, monkeypatch, capfd, damage
):
    source = data_dir("cifar10_subset")
    folder = tmp_path / "data" / "cifar10_subset"
    shutil.copytree(source, folder)
    shard = max(folder.rglob("*train*array_record*"), key=os.path.getsize)
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 255
        shard.write_bytes(data)
    error = run_on("cifar10_subset", folder.parent, tmp_path, monkeypatch, capfd)
    assert "cifar10_subset" in error and str(folder) in error
