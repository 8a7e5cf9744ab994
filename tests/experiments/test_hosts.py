"""Processes that train together end with the bits of one, and resume as one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SMALL = [
    *("--task.model.widths", "4", "--task.model.base-width", "4"),
    *("--task.batch-size", "8", "--lopt.hidden-size", "3"),
    *("--estimator.num-pairs", "2", "--estimator.chunk", "1"),
    *("--estimator.truncation", "4", "--estimator.lengths.minimum", "4"),
    *("--estimator.lengths.maximum", "12", "--validation.num-steps", "5"),
    *("--validation.every", "3", "--run.checkpoint-every", "3", "--num-steps", "6"),
]


def run(module, *arguments):
    process = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert process.returncode == 0, process.stderr


def files(path):
    names = ("metrics.jsonl", "validation.jsonl", "artifact/model.safetensors")
    return [(path / name).read_bytes() for name in names]


@pytest.mark.slow
def test_two_processes_have_the_bits_of_one_and_one_goes_on_where_two_stopped(tmp_path):
    alone, both, mixed = (tmp_path / name for name in ("alone", "both", "mixed"))
    train = ["quickstart", *SMALL, "--run.directory"]
    together = ["--processes", "2", "--", *train]
    run("experiments.train", *train, str(alone))
    run("experiments.hosts", *together, str(both))
    run("experiments.hosts", *together, str(mixed), "--run.stop-after", "3")
    run("experiments.train", *train, str(mixed))
    assert files(alone) == files(both) == files(mixed)
