"""What cannot fit into memory is refused from shapes; what would fit never is."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from evaluation import cost
from evaluation.cost import run_bytes
from evaluation.run import _mean_loss, evaluate
from experiments import (
    command_line,
    coordinate_check,
    diagnose,
    generate,
    learning_rate_transfer,
    train,
)
from experiments.presets import configs
from experiments.run.memory import window_bytes
from lopt.baselines import Adam
from lopt.learned.learnable import LearnableAdam
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.pes import PES
from metatrain.inner import InnerLoop
from metatrain.truncation import EpisodeLengths
from tasks.source import tree_bytes

ROOT = Path(__file__).parents[3]
LENGTHS = EpisodeLengths(20, 20)
SMALL = dataclasses.replace(
    configs.QUICKSTART, lopt=LearnableAdam(), estimator=PES(truncation=20)
)


def of(estimator, width=32, batch_size=128):
    task = dataclasses.replace(
        SMALL.task,
        model=dataclasses.replace(SMALL.task.model, widths=(width,)),
        batch_size=batch_size,
    )
    return dataclasses.replace(SMALL, task=task, estimator=estimator)


@pytest.mark.parametrize(
    "config",
    [
        of(PES(num_pairs=4, chunk=4, truncation=20, lengths=LENGTHS), width=2000),
        of(PES(num_pairs=8, chunk=2, truncation=20, lengths=LENGTHS), width=2000),
        of(PES(num_pairs=2, chunk=2, truncation=20, lengths=LENGTHS), batch_size=9999),
        of(PES(num_pairs=2, chunk=2, truncation=9999, lengths=LENGTHS)),
        of(Backpropagation(num_particles=2, chunk=2, truncation=99, lengths=LENGTHS)),
    ],
    ids=["one chunk", "chunks", "batch", "draws", "derivative"],
)
def test_a_window_needs_no_less_than_is_counted(config):
    training = config.build()
    state = jax.eval_shape(training.init)
    theta, particles = state.theta, state.estimator_states[0]
    data = config.task.load_data()
    compiled = (
        type(training)
        ._advance.lower(training, 0, theta, particles, state.step, data, np.int32(0))
        .compile()
    )
    counted = tree_bytes(particles) + sum(
        window_bytes(training, config.task, particles).values()
    )
    found = compiled.memory_analysis()
    needed = (
        found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )
    assert needed / 8 < counted < needed


def test_a_validation_needs_no_less_than_is_counted():
    loop, seeds = InnerLoop(SMALL.task, SMALL.lopt), np.arange(40, dtype=np.int32)
    theta = jax.eval_shape(SMALL.lopt.init, jax.random.key(0))
    lowered = _mean_loss.lower(
        loop, 50, "outer_valid", theta, seeds, SMALL.task.load_data()
    )
    counted = run_bytes(SMALL.task, SMALL.lopt, 50, len(seeds))
    needed = lowered.compile().memory_analysis().temp_size_in_bytes
    assert needed / 8 < counted < needed


@pytest.mark.parametrize(
    ("words", "what", "fields"),
    [
        (["--task.model.widths", "500000"], "an outer step on task", "the model"),
        (["--task.batch-size", "100000000"], "an outer step on task", "batch_size"),
        (["--estimator.num-pairs", "1000000"], "the state of this run", "particles"),
        (["--validation.num-seeds", "999999"], "validation on task", "num_seeds"),
        (["--validation.num-steps", "99999999"], "validation on task", "num_steps"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_what_cannot_fit_is_refused_in_one_line(
    tmp_path, monkeypatch, capsys, words, what, fields, dry
):
    monkeypatch.setattr(cost, "memory_bytes", lambda: 3 * 10**10)
    place = ["--run.directory", str(tmp_path / "run"), "--run.devices", "1"]
    monkeypatch.setattr(sys, "argv", ["train", "quickstart", *place, *words, *dry])
    with pytest.raises(SystemExit) as stop:
        command_line.run(train.main)
    out, error = capsys.readouterr()
    assert stop.value.code == 2
    assert error.count("\n") == 1 and "compiling" not in out
    assert error.startswith(f"error: {what} needs at least ")
    assert "bytes of memory, and there are 3.0e+10: make " in error
    assert fields in error.partition("make")[2]


def test_an_evaluation_that_cannot_fit_does_not_run(monkeypatch):
    monkeypatch.setattr(cost, "memory_bytes", lambda: 10**4)
    adam = Adam()
    theta = adam.init(jax.random.key(0))
    with pytest.raises(MemoryError, match="2 steps of ImageClassification needs at"):
        evaluate(SMALL.task, adam, theta, 2, [1, 2])


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (diagnose, ["--batch-size", "99999999"], "training a ConvNet needs at least"),
        (diagnose, ["--model.width", "99999999"], "training a ConvNet needs at least"),
        (diagnose, ["--num-sessions", "99999999"], "num_sessions = 99999999 must be"),
        (diagnose, ["--num-resamples", "99999999"], "num_resamples = 99999999 must"),
        (generate, ["--task.batch-size", "99999999"], "needs at least"),
        (generate, ["--num-samples", "99999999"], "num_samples = 99999999 must be"),
        (learning_rate_transfer, ["mlp", "--widths", "8", "99999999"], "a MLP needs"),
        (coordinate_check, ["mlp", "--sizes", "8", "99999999"], "a MLP needs at least"),
    ],
)
def test_other_commands_refuse_it_as_well(
    tmp_path, monkeypatch, capsys, command, words, message
):
    out = ["--out-dir", str(tmp_path), "--no-compilation-cache"]
    monkeypatch.setattr(sys, "argv", ["command", *words, *out])
    with pytest.raises(SystemExit) as stop:
        command_line.run(command.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_what_is_not_counted_is_one_line_too():
    """An allocation that the system refuses, after compilation."""
    code = """
import jax.numpy as jnp
from experiments import command_line
command_line.run(lambda: jnp.ones([2**50]).block_until_ready() and None)
"""
    line = [sys.executable, "-c", code]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "ut of memory" in ended.stderr and ended.stderr.count("\n") == 1
