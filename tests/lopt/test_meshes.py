"""Optimizers where parameters are split over devices, or each device has its own.

`run_on_meshes.py` says what is checked: accumulators are born where their parameter
lies, and updates run under typed meshes and under `shard_map`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lopt.test_properties import CASES

ROOT = Path(__file__).parents[2]
FLAGS = "--xla_force_host_platform_device_count=4"
QUICK = ("celo2",)


def shortcomings(names):
    """Runs a process of its own, since JAX has one number of devices in a process."""
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), FLAGS])
    done = subprocess.run(
        [sys.executable, "-m", "tests.lopt.run_on_meshes", *names],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_one_rule_of_matrices_and_vectors_on_meshes():
    assert shortcomings(QUICK) == {name: [] for name in QUICK}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_optimizers_on_meshes():
    names = [name for name in CASES if name not in QUICK]
    assert shortcomings(names) == {name: [] for name in names}
