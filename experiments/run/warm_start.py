"""Meta-training that begins with the θ of an artifact: `--init-from ARTIFACT`.

Parts of θ (its names at the top level) that the artifact has are taken from it, the
others are initialized as usual, so a scheduler can be learned around the rule of an
earlier phase. The state of the outer optimizer is fresh. `parent.json` records what was
taken, and so does the provenance of the release.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import jax

from configuration.files import SUMS, read_bytes
from experiments.command_line import reported
from experiments.presets.configs import TrainConfig
from experiments.presets.serialization import differences, encode
from experiments.run import processes, run_directory
from lopt.base import LearnedOptimizer, Theta, first_difference
from lopt.release.artifact import Artifact
from lopt.release.registry import as_trained
from lopt.wrappers.base import Wrapper, innermost
from metatrain.outer import MetaTraining


def initial_theta(
    config: TrainConfig, training: MetaTraining, path: Path
) -> Theta | None:
    """Returns the θ to begin with, and records its origin in the run directory.

    Returns None if the configuration names no artifact.

    Raises:
        InputError: if the artifact is damaged or does not fit.
    """
    folder = config.init_from
    if folder is None:
        return None
    with reported():
        artifact = Artifact.load(folder)
        fresh = jax.device_get(training.init().theta)
        theta, parts = begin_with(artifact, config.lopt, fresh, folder)
        sums = read_bytes(folder / SUMS)
    optimizers = [artifact.optimizer, config.lopt]
    there, here = map(classes, optimizers)
    if there != here:
        line = f"{' of '.join(there)}, which is {' of '.join(here)} here"
        print(f"warning: {folder} was trained as {line}", file=sys.stderr)
        optimizers = map(innermost, optimizers)
    sides = map(as_trained, optimizers)
    for line in differences(*(encode(side, absent=True) for side in sides)):
        print(f"warning: {folder} was trained with {line} here", file=sys.stderr)
    parent = {
        "path": str(folder),
        "sha256": hashlib.sha256(sums).hexdigest(),
        "class": there[-1],
        "parts": parts,
        "provenance": dict(artifact.provenance),
    }
    processes.on_first(lambda: run_directory.write_parent(path, parent))
    print(f"beginning with {', '.join(parts)} of {folder}")
    return theta


def classes(optimizer: LearnedOptimizer) -> list[str]:
    """Returns the names of an optimizer's class and of all that it wraps."""
    inner = classes(optimizer.inner) if isinstance(optimizer, Wrapper) else []
    return [type(optimizer).__name__, *inner]


def begin_with(
    artifact: Artifact, lopt: LearnedOptimizer, fresh: Theta, folder: Path
) -> tuple[Theta, list[str]]:
    """Returns θ to begin with, and the names of its parts from the artifact.

    `fresh` is the initial θ of `lopt`; messages name the artifact's `folder`.

    Raises:
        ValueError: if the artifact is of another class, or a part does not fit.
    """
    there, here = (classes(x)[-1] for x in (artifact.optimizer, lopt))
    if there != here:
        raise ValueError(f"{folder} holds a {there}; this run trains a {here}")
    if unknown := sorted(set(artifact.theta) - set(fresh)):
        raise ValueError(
            f"{folder} has a part {unknown[0]!r} of theta that this {here} lacks: its "
            f"parts are {', '.join(sorted(fresh))}"
        )
    own = {name: fresh[name] for name in artifact.theta}
    if differs := first_difference(artifact.theta, own):
        name, stored, wanted = differs
        raise ValueError(
            f"{folder} does not fit this {here}: theta{name} is {stored} there and "
            f"{wanted} here"
        )
    return {**fresh, **artifact.theta}, sorted(artifact.theta)
