"""Thousands of outer steps: the memory does not grow, and nothing is compiled anew."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.run.run_directory import METRICS, RunDirectory, read_rows
from experiments.train import train
from tests.experiments.tiny_run import options

STEPS = 5000
WARM = 1000
"""Steps after which everything has been done at least twice."""
GROWTH = 4 * 2**20
"""Bytes: what the allocator may still take after that; 1 KiB a step would be more."""


def resident() -> int:
    """Bytes of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays_flat_and_nothing_is_compiled_anew(tmp_path, monkeypatch, caplog):
    config = options(tmp_path / "run", checkpoint_every=250, log_every=20)
    validation = dataclasses.replace(config.validation, every=250)
    config = dataclasses.replace(config, num_steps=STEPS, validation=validation)
    sizes, compiled, arrays = {}, {}, {}
    real = RunDirectory.append

    def append(self, name, rows):
        real(self, name, rows)
        step = rows[-1]["step"]
        if name == METRICS and step % 500 == 0:
            gc.collect()
            sizes[step], arrays[step] = resident(), len(jax.live_arrays())
            compiled[step] = len(caplog.records)

    monkeypatch.setattr(RunDirectory, "append", append)
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.WARNING, logger="jax"):
            train(config, "tiny")
    finally:
        jax.config.update("jax_log_compiles", False)
    assert [row["step"] for row in read_rows(tmp_path / "run" / METRICS)] == [
        *range(1, STEPS + 1)
    ]
    print(json.dumps(sizes), compiled, arrays)
    # The way of counting works: the first steps did compile.
    assert compiled[500] > 10
    assert compiled[STEPS] == compiled[WARM], caplog.records[-1].getMessage()
    assert arrays[STEPS] == arrays[WARM]
    assert max(sizes.values()) - sizes[WARM] < GROWTH, json.dumps(sizes)
    assert np.polyfit([*sizes][1:], [*sizes.values()][1:], 1)[0] < GROWTH / STEPS
