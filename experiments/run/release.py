"""What a training run releases: the optimizer of its best θ, with its provenance."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any, NamedTuple

import jax

from experiments.command_line import InputError, reported
from experiments.presets.configs import TrainConfig
from experiments.presets.serialization import encode
from experiments.run import run_directory
from experiments.run.run_directory import RunDirectory
from lopt.base import Theta
from lopt.release.artifact import FILES, Artifact
from metatrain.outer import OuterState
from tasks.modelled import ModelTask


class Best(NamedTuple):
    """The θ with the smallest validation loss so far."""

    theta: Theta
    loss: jax.Array  # [] normalized; infinite before any validation
    step: jax.Array  # [] int32


class TrainingState(NamedTuple):
    """What a checkpoint holds."""

    outer: OuterState
    best: Best


def release(config: TrainConfig, directory: RunDirectory, state: TrainingState) -> None:
    """Writes the run's artifact, unless it is there already.

    Raises:
        InputError: if something else lies in its place, or it cannot be written.
    """
    folder = directory.path / "artifact"
    # A record of an earlier start, which was never trained, may lie there.
    begun = config.init_from is not None
    parent = run_directory.read_parent(directory.path) if begun else None
    artifact = make_artifact(config, state, parent)
    if folder.is_dir() and not folder.is_symlink():
        foreign = sorted({path.name for path in folder.iterdir()} - set(FILES))
        if foreign:
            print(f"{folder} also holds {', '.join(foreign)}: it is left as it is")
            return
        try:
            if Artifact.load(folder).provenance == artifact.provenance:
                return
        except ValueError as error:
            print(f"warning: {error}; it is released anew", file=sys.stderr)
    elif os.path.lexists(folder):
        raise InputError(f"{folder} is not a folder of this run; move it away")
    with reported():
        artifact.save(folder, replace=True)
    print(f"released {folder} (θ of step {int(state.best.step)})")


def base_sizes(config: TrainConfig) -> dict[str, int]:
    """The sizes of the base model that all groups of a run agree on."""
    tasks = [group.task for group in config.distribution.groups]
    bases = [t.model.base_sizes if isinstance(t, ModelTask) else {} for t in tasks]
    return dict(set(bases[0].items()).intersection(*(base.items() for base in bases)))


def make_artifact(
    config: TrainConfig, state: TrainingState, parent: dict[str, Any] | None = None
) -> Artifact:
    """The optimizer of the best validated θ, with its provenance.

    Args:
        config: of the run.
        state: where it stands.
        parent: what it began with (see `experiments.run.warm_start`).
    """
    provenance = {
        "config": {k: v for k, v in encode(config).items() if k != "run"},
        "outer_steps": int(state.outer.step),
        "best_step": int(state.best.step),
        "validation_figure": config.validation.figure,
        "validation_loss": float(state.best.loss),
        "jax": jax.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "backend": jax.default_backend(),
    }
    if parent is not None:
        provenance["parent"] = parent
    return Artifact(config.lopt, state.best.theta, base_sizes(config), provenance)
