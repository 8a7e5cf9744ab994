"""Several processes: how they are started, how they stop, what a lost one costs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import hosts
from experiments.command_line import INTERRUPTED, InputError
from experiments.run import processes
from experiments.run.processes import PEER_LOST, Meeting, take_meeting
from experiments.run.run_directory import METRICS, RunDirectory, read_rows

ROOT = Path(__file__).parents[2]


def test_a_meeting_is_taken_out_of_the_command_line():
    words = ["quickstart", "--coordinator", "here:12", "--num_processes=3"]
    words += ["--seed", "4", "--process-id", "2"]
    assert take_meeting(words) == (
        Meeting("here:12", 3, 2),
        ["quickstart", "--seed", "4"],
    )
    assert take_meeting(["quickstart"]) == (None, ["quickstart"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coordinator", "a:1"], "--num-processes and --process-id must be given"),
        (["--process-id"], "--process-id needs a value"),
        (["a", "2", "0"], "--coordinator 'a' must be HOST:PORT"),
        (["a:0", "2", "0"], "--coordinator 'a:0' must be HOST:PORT"),
        (["a:70000", "2", "0"], "must be HOST:PORT"),
        (["a:1", "0", "0"], "--num-processes 0 must be positive"),
        (["a:1", "two", "0"], "--num-processes 'two' must be a whole number"),
        (["a:1", "2", "2"], r"--process-id 2 must lie in \[0, 1\]"),
        (["a:1", "2", "-1"], r"--process-id -1 must lie in \[0, 1\]"),
    ],
)
def test_a_wrong_meeting_is_refused(words, message):
    if len(words) == 3:
        names = ("--coordinator", "--num-processes", "--process-id")
        words = [w for pair in zip(names, words, strict=True) for w in pair]
    with pytest.raises(InputError, match=message) as error:
        take_meeting(words)
    assert "\n" not in str(error.value)


def test_a_process_alone_does_everything_itself(tmp_path):
    assert not processes.several() and processes.is_first()
    assert processes.on_first(lambda: 3) == 3
    with processes.run_directory(tmp_path / "run") as directory:
        assert type(directory) is RunDirectory
    with pytest.raises(InputError, match="mine"):
        processes.on_first(lambda: (_ for _ in ()).throw(InputError("mine")))


@pytest.mark.parametrize(
    ("cores", "shown", "expected"), [(2, 8, 2), (1, 8, 1), (7, 8, 6), (64, 2, 2)]
)
def test_a_cpu_is_as_many_devices_as_cores_and_chunks_allow(
    monkeypatch, cores, shown, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert processes.cpu_devices(12, shown) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert processes.cpu_devices(64) == processes.MOST_CPU_DEVICES


def test_a_process_that_is_not_the_first_has_no_run_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "on_first", lambda work: None)
    with processes.run_directory(tmp_path / "run") as directory:
        assert directory is None
    assert list(tmp_path.iterdir()) == []


# Started instead of training: it does what it is told to as process 0 and as process 1.
STUB = """
import os, signal, sys, time
what = sys.argv[1].split(",")[int(sys.argv[-1])]
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "polite":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
print(sys.argv[2:], flush=True)
if what == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
if what.isdigit():
    sys.exit(int(what))
time.sleep(60)
"""


def launch(what, grace):
    begin = time.monotonic()
    code = hosts.launch(2, [what], grace, (sys.executable, "-c", STUB))
    return code, time.monotonic() - begin


@pytest.mark.parametrize(
    ("what", "code"), [("0,0", 0), ("0,2", 2), ("130,75", 130), ("7,dies", 137)]
)
def test_the_largest_exit_code_counts(what, code):
    assert launch(what, 30.0)[0] == code


@pytest.mark.parametrize(
    ("what", "first"),
    [
        ("dies,deaf", "137"),
        ("3,sleeps", "3"),
        ("134,stopped", "134, as JAX ends where another one was silent for long"),
    ],
)
def test_the_end_of_one_is_the_end_of_all(what, first, capfd):
    code, seconds = launch(what, 0.5)
    assert code == 137 and seconds < 20.0
    told = capfd.readouterr()
    assert f"hosts: process 0 ended with code {first}; so will the others" in told.err
    assert "hosts: 1 still run after 0.5 s: they are killed" in told.err
    assert "'--num-processes', '2', '--process-id', '1'" in told.out


@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [
        ("polite", signal.SIGTERM, 130),
        ("polite", signal.SIGHUP, 130),
        ("deaf", signal.SIGTERM, 137),
    ],
)
def test_signals_are_passed_on(kind, number, code):
    """A second one begins the grace of those that do not hear."""
    call = f"from experiments import hosts; import sys; sys.exit(hosts.launch(2, \
['{kind},{kind}'], 0.5, (sys.executable, '-c', {STUB!r})))"
    launcher = subprocess.Popen(
        [sys.executable, "-c", call], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        for _ in range(2):  # both have started, and hear
            launcher.stdout.readline()
        launcher.send_signal(number)
        if kind == "deaf":
            time.sleep(0.2)  # two signals at once are one
            launcher.send_signal(number)
        assert launcher.wait(timeout=20) == code
    finally:
        launcher.kill()
        launcher.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0", "--", "quickstart"], "--processes 0 must be positive"),
        (["--grace", "-1", "--", "quickstart"], "--grace -1.0 must be seconds"),
        (["--processes", "x"], "argument --processes: invalid int value: 'x'"),
        ([], "give the arguments of experiments.train after --"),
    ],
)
def test_a_wrong_launch_is_refused(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["hosts", *arguments])
    with pytest.raises(InputError, match=message):
        hosts.main()


STEPS = 3000
SMALL = [
    *("noisy_quadratic", "--lopt", "learnable_adam", "--task.quadratic.dimension", "4"),
    *("--estimator.num-pairs", "2", "--estimator.chunk", "1"),
    *("--estimator.truncation", "2", "--estimator.lengths.minimum", "2"),
    *("--estimator.lengths.maximum", "6", "--num-steps", str(STEPS)),
    *("--validation.every", "500", "--validation.num-steps", "3"),
    *("--validation.num-seeds", "1", "--run.checkpoint-every", "100"),
]


def begin(program, path, *more):
    """A process group of its own, so that nothing of it outlives the test."""
    command = [sys.executable, "-m", *program, *SMALL]
    return subprocess.Popen(
        [*command, "--run.directory", str(path), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


ONE = ("experiments.train",)
TWO = ("experiments.hosts", "--processes", "2", "--grace", "60", "--")


def children(process):
    task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in task.read_text().split()]


def end(process, seconds=280):
    """Its output, once it has ended; whatever happens, it and its children end."""
    left = children(process)
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        for pid in (process.pid, *left):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def until_checkpoint(process, path, after):
    """Waits for a checkpoint of a later step."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        names = [p.name for p in (path / "checkpoints").glob("step_*")]
        steps = [int(name.partition("_")[2]) for name in names]
        if steps and max(steps) > after:
            return max(steps)
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint after step {after}: {end(process, 1)}")


def record(path):
    artifact = path / "artifact" / "model.safetensors"
    return (path / METRICS).read_text(), artifact.read_bytes()


@pytest.mark.slow
def test_lost_stopped_and_continued_by_others_it_is_the_same_run(tmp_path):
    """Two processes, of which one dies; two that are told to stop; one of two devices.

    What they have written together is what one process writes.
    """
    alone = begin(ONE, tmp_path / "alone")
    path = tmp_path / "shared"
    run = begin(TWO, path)
    step = until_checkpoint(run, path, 0)
    pids = children(run)
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    out = end(run)
    assert time.monotonic() - killed < 60.0
    assert run.returncode == 137, out
    assert "another process was lost" in out
    assert "process 1 ended with code 137" in out or f"code {PEER_LOST};" in out
    assert len(read_rows(path / METRICS)) < STEPS

    run = begin(TWO, path)
    step = until_checkpoint(run, path, step)
    os.kill(children(run)[1], signal.SIGTERM)  # told to the other one too
    out = end(run)
    assert run.returncode == INTERRUPTED, out
    assert "continuing from step" in out
    stopped = read_rows(path / METRICS)[-1]["step"]
    assert step <= stopped < STEPS
    assert (path / "checkpoints" / f"step_{stopped:08d}").exists()

    run = begin(ONE, path, "--run.devices", "2")
    out = end(run)
    assert run.returncode == 0, out
    assert f"continuing from step {stopped}" in out
    out = end(alone)
    assert alone.returncode == 0, out
    assert record(path) == record(tmp_path / "alone")
    assert json.loads((path / "config.json").read_text())["run"]["devices"] == 2


@pytest.mark.slow
def test_what_one_process_cannot_do_all_are_told(tmp_path):
    run = begin(TWO, tmp_path / "run", "--run.devices", "3")
    out = end(run)
    assert run.returncode == 2, out
    assert "2 chunks of particles cannot be shared by 6 devices" in out
    with RunDirectory(tmp_path / "held"):
        run = begin(TWO, tmp_path / "held")
        out = end(run, 120)
    assert run.returncode == 2, out
    assert out.count("is in use by process") == 1
