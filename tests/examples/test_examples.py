"""Every example runs, small, and does what it says."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from lopt import Artifact, LearnableAdam, SmallFC

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    return importlib.import_module(f"examples.{name}")


@pytest.fixture
def artifact(golden):
    return golden("artifact_schema_1")


def test_every_example_is_short_and_tested():
    source = Path(__file__).read_text()
    notebook = EXAMPLES / "quickstart.py"  # test_notebook.py runs it
    for path in set(EXAMPLES.glob("*.py")) - {notebook}:
        assert f'example("{path.stem}")' in source, f"{path.name} is not run"
    assert len((EXAMPLES / "meta_train.py").read_text().splitlines()) <= 100


def released(folder, **arguments):
    made = example("meta_train").main(
        folder, num_steps=2, num_pairs=1, longest_episode=20, **arguments
    )
    read = Artifact.load(folder)
    assert type(read.optimizer) is type(made.optimizer)
    assert read.base == made.base and read.base["width"] == 32
    jax.tree.map(np.testing.assert_array_equal, read.theta, made.theta)
    return read


def test_meta_training_releases_what_it_returns(tmp_path, capsys):
    released(tmp_path / "released", lopt=LearnableAdam())
    assert "meta-loss" in capsys.readouterr().out


@pytest.mark.slow
def test_meta_training_of_its_own_optimizer(tmp_path):
    read = released(tmp_path / "released")
    assert isinstance(read.optimizer, SmallFC) and read.optimizer.hidden_size == 8


def test_flax_models_are_trained(artifact):
    losses = example("use_in_jax").main(artifact, width=48, num_steps=3)
    # The readout starts at zero: the first loss is ln 10, and the third is another.
    for loss in losses.values():
        assert math.isfinite(loss) and abs(loss - math.log(10)) > 1e-4


def test_a_torch_model_is_trained(artifact):
    pytest.importorskip("torch")
    loss = example("use_in_torch").main(artifact, width=48, num_steps=3)
    assert math.isfinite(loss) and abs(loss - math.log(10)) > 1e-4


@pytest.mark.slow
def test_an_own_task_is_meta_trained():
    losses = example("own_task").main(num_steps=2, wide=64)
    assert set(losses) == {32, 64} and all(map(math.isfinite, losses.values()))
