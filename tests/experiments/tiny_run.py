"""The smallest meta-training that has everything: what tests interrupt and damage."""

from __future__ import annotations

import contextlib
import dataclasses
import resource

import jax
import numpy as np

from experiments.presets import configs
from experiments.run.run_directory import METRICS, VALIDATION
from experiments.run.training_state import load_trained
from lopt.learned.learnable import LearnableSGDM
from metatrain.estimators.pes import PES
from metatrain.outer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from tasks.synthetic.quadratics import Quadratic

TINY = configs.TrainConfig(
    task=Quadratic(dimension=2, condition=10.0),
    lopt=LearnableSGDM(initial_learning_rate=0.1),
    estimator=PES(
        num_pairs=2, chunk=1, truncation=2, sigma=0.1, lengths=EpisodeLengths(2, 6)
    ),
    outer=OuterOptimizer(learning_rate=0.1, warmup_steps=2),
    num_steps=10,
    validation=configs.Validation(every=3, num_steps=3, num_seeds=2),
)


def options(directory, **fields):
    """The tiny run in a directory, with a checkpoint after every fourth step."""
    fields = {"checkpoint_every": 4, "log_every": 3} | fields
    run = configs.RunOptions(directory=directory, **fields)
    return dataclasses.replace(TINY, run=run)


def same(left, right):
    """Whether two states are the same bits."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(
        np.asarray(a).dtype == np.asarray(b).dtype
        and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in pairs
    )


def same_run(left, right):
    """Whether two run directories hold the same run, to the bit."""
    assert same(load_trained(left)[1], load_trained(right)[1])
    for name in (METRICS, VALIDATION):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    weights = [path / "artifact" / "model.safetensors" for path in (left, right)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    return True


@contextlib.contextmanager
def files_up_to(size):
    """No file may become larger than `size` bytes: a quota that is used up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
