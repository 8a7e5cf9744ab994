"""Training processes that are killed at any moment end in the same bits.

Slow: whole processes, a handful of them. That every file operation of a save may be the
last one is seen in `tests/metatrain/test_killed_saves.py`.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.run.run_directory import METRICS, read_rows
from metatrain.checkpoint import Checkpoints
from tests.experiments.tiny_run import same_run

pytestmark = pytest.mark.slow

STEPS = 40
KILLS = 5
PROGRAM = f"""
import dataclasses, sys
from pathlib import Path
import jax
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from experiments import command_line
from experiments.train import train
from tests.experiments.tiny_run import options
config = options(Path(sys.argv[1]), checkpoint_every=2, log_every=2)
validation = dataclasses.replace(config.validation, every=7)
config = dataclasses.replace(config, num_steps={STEPS}, validation=validation)
command_line.run(lambda: train(config, "tiny") and None)
"""


def started(directory, cache):
    """A training process whose compiled programs are kept for the next one."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), str(cache)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def finished(process):
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return error


def lines_after(path, number, deadline):
    """Waits until more lines are recorded than before."""
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") > number:
            return
        time.sleep(0.002)
    pytest.fail("nothing was recorded")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache):
    """A run that was never stopped."""
    path = tmp_path_factory.mktemp("straight") / "run"
    finished(started(path, cache))
    return path


def test_processes_killed_at_random_moments_end_in_the_same_bits(
    straight, cache, tmp_path
):
    killed = tmp_path / "killed"
    rng, metrics = random.Random(0), killed / METRICS
    steps = []
    for _ in range(KILLS):
        before = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        process = started(killed, cache)
        try:
            # What lies behind the checkpoint is dropped first: wait until it is more.
            lines_after(metrics, before, time.monotonic() + 240)
            time.sleep(rng.uniform(0.0, 0.2))  # several saves: any moment of one
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, "it was done too early"
        newest = Checkpoints(killed / "checkpoints").steps()
        steps.append(newest[-1] if newest else 0)
        recorded = [row["step"] for row in read_rows(metrics)]
        assert recorded == list(range(1, len(recorded) + 1))
        assert len(recorded) >= steps[-1]
    assert steps == sorted(steps) and 0 < steps[-1] < STEPS
    assert "skipped" not in finished(started(killed, cache))
    assert same_run(killed, straight)
    recorded = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert recorded == list(range(1, STEPS + 1))


def test_a_process_ends_at_the_next_boundary_though_it_is_told_twice(
    straight, cache, tmp_path
):
    stopped = tmp_path / "stopped"
    process = started(stopped, cache)
    lines_after(stopped / METRICS, 4, time.monotonic() + 240)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    newest = Checkpoints(stopped / "checkpoints").steps()[-1]
    assert len(read_rows(stopped / METRICS)) == newest < STEPS
    finished(started(stopped, cache))
    assert same_run(stopped, straight)
