"""Commands that are interrupted, or have no streams to write to, from their start on.

The first moments are those of another `jax`, which is what every command imports first:
it does what a test wants to happen there.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import signals, start
from experiments.run.interruption import Interruption
from experiments.run.results import write_results

ROOT = Path(__file__).parents[2]
STORED_RUN = ROOT / "tests" / "golden" / "run_schema_1"
INTERRUPTED_IN_A_CALLBACK = """
import gc, os, signal
gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGINT))
gc.collect()
gc.callbacks.clear()
print("not interrupted", flush=True)
raise SystemExit(7)
"""


def command(tmp_path, jax, *words, shell="", **options):
    """Runs a command that imports another `jax`, with redirections of a shell."""
    (tmp_path / "jax.py").write_text(jax)
    line = f'exec "{sys.executable}" -m experiments.optimizers {shell}'
    path = {"PYTHONPATH": str(tmp_path)}
    return subprocess.run(
        ["sh", "-c", line, "sh", *words],
        cwd=ROOT,
        env=os.environ | path | options.pop("env", {}),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_an_interruption_while_modules_are_imported_ends_the_process(tmp_path):
    ended = command(tmp_path, INTERRUPTED_IN_A_CALLBACK)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_an_ignored_interruption_stays_ignored(tmp_path):
    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    ended = command(tmp_path, INTERRUPTED_IN_A_CALLBACK, preexec_fn=ignore)
    assert (ended.returncode, ended.stdout) == (7, "not interrupted\n")


def test_an_interruption_of_a_command_cannot_be_dropped():
    interrupted = INTERRUPTED_IN_A_CALLBACK.replace("\n", "\n    ")
    code = f"""
from experiments import command_line
def main():
    print("begun")
    {interrupted}
command_line.run(main)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (130, "begun\n")
    assert ended.stderr == "interrupted; finished work is kept\n"


def test_nothing_is_left_of_an_artifact_whose_writing_is_interrupted(tmp_path):
    out = tmp_path / "out" / "artifact"
    code = f"""
import os, signal, sys
from experiments import command_line, export
from lopt.release import artifact
real = artifact.save_file
def save_file(*arguments):
    real(*arguments)
    os.kill(os.getpid(), signal.SIGINT)
artifact.save_file = save_file
sys.argv = ["export", {str(STORED_RUN)!r}, {str(out)!r}]
command_line.run(export.main)
"""
    line = [sys.executable, "-c", code]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr == "interrupted; finished work is kept\n"
    assert list(out.parent.iterdir()) == []


def test_nothing_is_left_of_a_figure_whose_writing_is_interrupted(
    tmp_path, monkeypatch
):
    def fsync(descriptor):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "fsync", fsync)
    with signals.handled(lambda *_: None), pytest.raises(KeyboardInterrupt):
        write_results(tmp_path, "record.json", {}, {}, {"figure.png": b"png"})
    assert list(tmp_path.iterdir()) == []


def test_imported_elsewhere_the_package_changes_no_signal():
    code = "import signal, experiments; print(signal.getsignal(signal.SIGINT))"
    line = [sys.executable, "-c", code]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "default_int_handler" in ended.stdout


@pytest.mark.parametrize("shell", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path, shell):
    jax = f"""
import os, sys
file = open({str(tmp_path / "file")!r}, "w")
ok = file.fileno() > 2 and not sys.stdout.isatty() and sys.stdin.read() == ""
print("printed", file=sys.stderr)
os.write(2, b"printed")
raise SystemExit(5 if ok and os.get_inheritable(2) else 6)
"""
    ended = command(tmp_path, jax, shell=shell, stdin=subprocess.DEVNULL)
    assert ended.returncode == 5, ended.stderr
    assert (tmp_path / "file").read_text() == ""


def test_commands_compute_in_float32_whatever_the_environment_says(tmp_path):
    jax = "import os; raise SystemExit(int(os.environ['JAX_ENABLE_X64']))"
    ended = command(tmp_path, jax, env={start.X64: "1"})
    assert ended.returncode == 0
    assert ended.stderr == (
        "warning: JAX_ENABLE_X64 is ignored: commands compute in float32\n"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_output_is_named(unbuffered):
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "experiments.optimizers"],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    assert ended.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("number", signals.STOPPING)
def test_signals_stop_training_unless_they_are_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), number)
            assert not interruption.after(1)
        signal.signal(number, signal.SIG_DFL)
        with Interruption() as interruption:
            assert not interruption.after(1)
            os.kill(os.getpid(), number)
            assert interruption.after(2)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_training_outlives_the_terminal_that_it_writes_to(capfd):
    terminal, end = pty.openpty()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        for descriptor in (1, 2):
            os.dup2(end, descriptor)
        os.close(terminal)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(1, b"it is gone")
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.after(1)
        assert [os.write(descriptor, b"text") for descriptor in (1, 2)] == [4, 4]
    finally:
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(end)
