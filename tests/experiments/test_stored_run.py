"""A run directory of an earlier version is read by the commands that take one."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np

from experiments import evaluate, export
from lopt.release.artifact import Artifact

STORED = Path(__file__).parents[1] / "golden" / "run_schema_1"


def test_export_releases_what_the_run_had_released(tmp_path, monkeypatch):
    shutil.copytree(STORED, tmp_path / "run")
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "run"), str(out)])
    export.main()
    then, now = Artifact.load(STORED / "artifact"), Artifact.load(out)
    assert now.optimizer == then.optimizer and now.base == then.base
    pairs = zip(jax.tree.leaves(now.theta), jax.tree.leaves(then.theta), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    for name in ("outer_steps", "best_step", "validation_loss"):
        assert now.provenance[name] == then.provenance[name]


def test_an_evaluation_reads_the_training_rows_beside_the_artifact():
    rows = evaluate._training_rows(
        STORED / "artifact", Artifact.load(STORED / "artifact")
    )
    losses = [row["meta_loss"] for row in rows if "meta_loss" in row]
    held_out = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    assert len(losses) == 20 and np.isfinite(losses).all()
    assert len(held_out) == 2 and np.isfinite(held_out).all()
