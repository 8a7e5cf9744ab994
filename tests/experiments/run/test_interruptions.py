"""Signals and full disks: what was done is kept, and the rest is the same bits."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from configuration import files as integrity
from configuration import folders
from experiments import command_line
from experiments import train as training_command
from experiments.command_line import BAD_INPUT, INTERRUPTED, InputError
from experiments.run import run_directory
from experiments.run.run_directory import METRICS, TIMING, VALIDATION, RunDirectory
from experiments.run.training_state import load_trained
from experiments.train import train
from lopt.release.artifact import Artifact
from metatrain import checkpoint, streaming
from metatrain.checkpoint import Checkpoints
from tests.experiments.tiny_run import files_up_to, options, same_run

KEPT = (".lock", ".saved")
"""Hidden files of a run directory."""

# Threads of tensorstore that fail after orbax has given up say so, at any later time.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Ten outer steps without a stop."""
    path = tmp_path_factory.mktemp("straight") / "run"
    train(options(path), "tiny")
    return path


def ended(directory, capfd):
    """Exit code and the errors of a run that is to be interrupted or to fail."""
    with pytest.raises(SystemExit) as stop:
        command_line.run(lambda: train(options(directory), "tiny") and None)
    return stop.value.code, capfd.readouterr().err


def signals(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def before_a_step(monkeypatch, step, numbers):
    real = streaming.Feed.at

    def at(self, done):
        if done + 1 == step:
            signals(*numbers)
        return real(self, done)

    monkeypatch.setattr(streaming.Feed, "at", at)


def during_a_save(monkeypatch, step, numbers):
    real = checkpoint.publish

    def publish(path, write, **options):
        def interrupted(temporary):
            signals(*numbers)
            write(temporary)
            signals(*numbers)

        named = path.name == f"step_{step:08d}"
        real(path, interrupted if named else write, **options)

    monkeypatch.setattr(checkpoint, "publish", publish)


@pytest.mark.parametrize(
    ("moment", "step", "numbers", "last"),
    [
        (before_a_step, 5, [signal.SIGTERM], 5),
        (before_a_step, 1, [signal.SIGTERM, signal.SIGTERM], 1),
        (before_a_step, 8, [signal.SIGTERM, signal.SIGINT], 8),
        (during_a_save, 4, [signal.SIGTERM], 5),
        (during_a_save, 8, [signal.SIGINT, signal.SIGTERM], 9),
    ],
    ids=["mid-step", "twice", "at a checkpoint", "during a save", "four times"],
)
def test_signals_stop_at_the_next_boundary_and_nothing_is_lost(
    straight, tmp_path, monkeypatch, capfd, moment, step, numbers, last
):
    path = tmp_path / "run"
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patched:
        moment(patched, step, numbers)
        code, error = ended(path, capfd)
    assert code == INTERRUPTED == 130
    assert "stopping after this step, with a checkpoint" in error
    assert Checkpoints(path / "checkpoints").steps()[-1] == last
    rows = run_directory.read_rows(path / METRICS)
    assert [row["step"] for row in rows] == list(range(1, last + 1))
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    train(options(path), "tiny")
    assert same_run(path, straight)


def test_a_signal_during_the_last_save_lets_the_run_finish(
    straight, tmp_path, monkeypatch
):
    during_a_save(monkeypatch, 10, [signal.SIGTERM])
    train(options(tmp_path / "run"), "tiny")
    assert same_run(tmp_path / "run", straight)


def limited(monkeypatch, owner, name, size_of, when=lambda *arguments: True):
    """Calls of a method find the disk full after some bytes."""
    real = getattr(owner, name)

    def call(self, *arguments, **named):
        if not when(*arguments):
            return real(self, *arguments, **named)
        with files_up_to(size_of(self, *arguments)):
            return real(self, *arguments, **named)

    monkeypatch.setattr(owner, name, call)


def full_record(name, step):
    """After a part of the line that is to be written, at a step."""

    def fill(monkeypatch):
        limited(
            monkeypatch,
            RunDirectory,
            "append",
            lambda directory, name, rows: 10 + _size(directory.path / name),
            lambda written, rows: written == name and rows[-1]["step"] >= step,
        )

    return fill


def _size(path):
    return path.stat().st_size if path.exists() else 0


def full_checkpoint(monkeypatch):
    limited(monkeypatch, Checkpoints, "save", lambda *_: 500, lambda step, _: step > 4)


def full_artifact(monkeypatch):
    limited(monkeypatch, Artifact, "save", lambda *_: 20)


def full_configuration(monkeypatch):
    limited(monkeypatch, RunDirectory, "claim", lambda *_: 100)


def full_before_going_on(monkeypatch):
    limited(
        monkeypatch,
        RunDirectory,
        "truncate_after",
        lambda *_: 20,
        lambda step, validated: step > 0,
    )


@pytest.mark.parametrize(
    ("fill", "named", "steps"),
    [
        (full_record(METRICS, 1), METRICS, []),
        (full_record(METRICS, 6), METRICS, [4]),
        (full_record(VALIDATION, 6), VALIDATION, [4]),
        (full_record(TIMING, 6), TIMING, [4]),
        (full_checkpoint, "checkpoints/step_00000008", [4]),
        (full_artifact, "artifact", [4, 8, 10]),
        (full_configuration, "config.json", []),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_full_disk_names_the_path_and_loses_nothing(
    straight, tmp_path, monkeypatch, capfd, fill, named, steps
):
    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        fill(patched)
        code, error = ended(path, capfd)
    assert code == BAD_INPUT == 2
    assert f"error: {path / named}" in error, error
    assert os.strerror(errno.EFBIG) in error
    assert error.count("\n") == 1
    assert Checkpoints(path / "checkpoints").steps() == steps
    if named == METRICS and steps:
        assert not (path / METRICS).read_text().endswith("\n")  # a part of a line
    train(options(path), "tiny")
    assert same_run(path, straight)
    assert not [n for n in os.listdir(path) if n.startswith(".") and n not in KEPT]


def test_a_disk_that_is_still_full_when_the_run_goes_on(
    straight, tmp_path, monkeypatch, capfd
):
    path = tmp_path / "run"
    train(options(path, stop_after=5), "tiny")
    before = (path / METRICS).read_bytes()
    with monkeypatch.context() as patched:
        full_before_going_on(patched)
        code, error = ended(path, capfd)
    assert code == BAD_INPUT and f"error: {path / METRICS}: " in error
    assert (path / METRICS).read_bytes() == before
    train(options(path), "tiny")
    assert same_run(path, straight)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "run", tmp_path / "file", Path("/proc/self/x")):
        code, error = ended(path, capfd)
        assert code == BAD_INPUT
        assert error.startswith(f"error: run directory {path} cannot be written: ")
        assert error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"

    def read_only(*arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "run"))

    monkeypatch.setattr(integrity, "replacing", read_only)
    code, error = ended(tmp_path / "run", capfd)
    assert code == BAD_INPUT
    assert error == f"error: {tmp_path / 'run'}: Read-only file system\n"


HOLDER = """
import sys, time
from pathlib import Path
from experiments.run.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_told_who_is_there_until_that_is_gone(tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(InputError) as error:
                train(options(path), "tiny")
            who = f"process {holder.pid} on {socket.gethostname()}; wait for it"
            assert f"run directory {path} is in use by {who}" in str(error.value)
            assert "\n" not in str(error.value)
            assert os.listdir(path) == [".lock"]
        finally:
            holder.kill()
    assert str(holder.pid) in (path / ".lock").read_text()  # stale
    with RunDirectory(path):
        owner = (path / ".lock").read_text()
    assert owner == f"{os.getpid()} on {socket.gethostname()}\n"


def test_a_file_system_without_locks_is_said_to_have_none(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folders.fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"No locks available; its file system may"):
        RunDirectory(tmp_path / "run")


@pytest.mark.parametrize("name", [".lock", METRICS, TIMING])
def test_a_link_in_the_place_of_a_file_is_refused(tmp_path, capfd, name):
    outside = tmp_path / "outside"
    outside.write_text("mine\n")
    path = tmp_path / "run"
    path.mkdir()
    (path / name).symlink_to(outside)
    code, error = ended(path, capfd)
    assert code == BAD_INPUT and error.count("\n") == 1
    assert name in error
    assert outside.read_text() == "mine\n"


def test_what_a_killed_process_left_is_taken_up(straight, tmp_path):
    path = tmp_path / "run"
    train(options(path), "tiny")
    # As if killed between the two renames of a release, and while writing a record.
    (path / "artifact").rename(path / ".artifact-abcdefgh-old")
    (path / ".artifact-abcdefgh").mkdir()
    (path / f".{METRICS}-abcdefgh.tmp").write_text("{")
    with RunDirectory(path):
        assert Artifact.load(path / "artifact")
    assert not [n for n in os.listdir(path) if n.startswith(".") and n not in KEPT]
    assert load_trained(path)[1].outer.step == 10


def test_an_error_that_is_a_defect_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(training_command, "release", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda: train(options(tmp_path / "run"), "tiny") and None)
