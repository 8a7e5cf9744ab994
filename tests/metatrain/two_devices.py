"""Prints a digest of a few outer steps on one device, and on two that share them."""

import dataclasses
import hashlib
import sys

import jax

jax.config.update("jax_num_cpu_devices", 2)

import numpy as np

from lopt.small_fc import SmallFC
from metatrain import devices
from metatrain.estimators.es import EvolutionStrategy
from metatrain.outer import MetaTraining
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE
from tasks.classification import ImageClassification
from tasks.models.mlp import MLP

TRAINING = MetaTraining.on(
    ImageClassification(MLP(widths=(4,), base_width=4), batch_size=8),
    SmallFC(hidden_size=3, step_mult=0.01, rules=ADAM_LIKE),
    EvolutionStrategy(
        num_pairs=2, chunk=1, truncation=4, lengths=EpisodeLengths(4, 12)
    ),
    OuterOptimizer(warmup_steps=0),
    num_steps=20,
)


def digest(training):
    """Of everything after four outer steps, resets among them."""
    data = training.groups[0].problem.task.load_data()
    data = {0: devices.replicate(data, training.mesh)}
    state = training.init()
    for _ in range(4):
        state, metrics = training.step(state, data)
        jax.block_until_ready(metrics)
    whole = devices.gather((state, metrics), training.mesh)
    sums = hashlib.sha256()
    for leaf in jax.tree.leaves(whole):
        sums.update(np.ascontiguousarray(leaf).tobytes())
    return sums.hexdigest()


if __name__ == "__main__":
    mesh = devices.make_mesh()
    assert mesh is not None and mesh.size == 2
    print(digest(TRAINING), digest(dataclasses.replace(TRAINING, mesh=mesh)))
    sys.stdout.flush()
