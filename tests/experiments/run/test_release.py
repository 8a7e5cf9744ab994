"""Equal runs release equal bytes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lopt.release.artifact import FILES

RELEASE = """
import sys
from pathlib import Path
from types import SimpleNamespace
import jax
from experiments.presets.configs import presets
from experiments.presets.serialization import encode
from experiments.run.release import make_artifact
config = presets()["mulo_s"][1]()
best = SimpleNamespace(theta=config.lopt.init(jax.random.key(0)), step=3, loss=1.0)
state = SimpleNamespace(outer=SimpleNamespace(step=3), best=best)
make_artifact(config, encode(config), state, None).save(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    """With it changes the order of what sets of texts hold."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RELEASE, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        for seed in ("1", "3")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    for name in FILES:
        one, two = ((tmp_path / seed / name).read_bytes() for seed in ("1", "3"))
        assert one == two
