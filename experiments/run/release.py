"""Release of a training run: the optimizer of its best θ, with its provenance."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from experiments.command_line import InputError, reported
from experiments.presets.configs import TrainConfig
from experiments.run.run_directory import read_parent
from experiments.run.training_state import TrainingState
from lopt.release.artifact import FILES, Artifact
from tasks.modelled import ModelTask


def release(
    config: TrainConfig,
    encoded: dict[str, Any],
    path: Path,
    state: TrainingState,
    about: dict[str, Any] | None,
) -> None:
    """Writes the artifact into the run directory, unless it is there already.

    Args are those of `make_artifact`, and the run directory.

    Raises:
        InputError: if something else lies in its place, or it cannot be written.
    """
    folder = path / "artifact"
    # Without init_from, a record of a parent is left from a start that never trained.
    parent = read_parent(path) if config.init_from is not None else None
    artifact = make_artifact(config, encoded, state, about, parent)
    if folder.is_dir() and not folder.is_symlink():
        foreign = sorted({path.name for path in folder.iterdir()} - set(FILES))
        if foreign:
            print(f"{folder} also holds {', '.join(foreign)}: it is left as it is")
            return
        try:
            if Artifact.load(folder).provenance == artifact.provenance:
                return
        except ValueError as error:
            print(f"warning: {error}; it is written again", file=sys.stderr)
    elif os.path.lexists(folder):
        raise InputError(f"{folder} is not a folder of this run; move it away")
    with reported():
        artifact.save(folder, replace=True)
    print(f"released {folder} (θ of step {int(state.best.step)})")


def inner_steps(config: TrainConfig) -> int:
    """Returns the inner steps of one outer step, over all particles and groups."""
    distribution, estimator = config.distribution, config.estimator
    groups = len(distribution.groups) if distribution.each_step == "all" else 1
    return groups * estimator.num_members * estimator.truncation


def base_sizes(config: TrainConfig) -> dict[str, int]:
    """Returns the sizes of the base model that all task groups agree on."""
    tasks = [group.task for group in config.distribution.groups]
    first, *others = (
        task.model.base_sizes if isinstance(task, ModelTask) else {} for task in tasks
    )
    # In the order of the first, so that equal runs release equal bytes.
    return {
        name: size
        for name, size in first.items()
        if all(base.get(name) == size for base in others)
    }


def make_artifact(
    config: TrainConfig,
    encoded: dict[str, Any],
    state: TrainingState,
    about: dict[str, Any] | None,
    parent: dict[str, Any] | None = None,
) -> Artifact:
    """Returns the optimizer of the best validated θ, with its provenance.

    Args:
        config: the configuration.
        encoded: the same as JSON.
        state: the run's newest state.
        about: origin of that state: its data, versions and settings.
        parent: the record of the artifact that the run began with.
    """
    provenance = {
        "config": {name: value for name, value in encoded.items() if name != "run"},
        "outer_steps": int(state.outer.step),
        "inner_steps": int(state.outer.step) * inner_steps(config),
        "best_step": int(state.best.step),
        "validation_figure": config.validation.figure,
        "validation_loss": float(state.best.loss),
        "platform": f"{platform.system()} {platform.machine()}",
        **(about or {}),
    }
    if parent is not None:
        provenance["parent"] = parent
    return Artifact(config.lopt, state.best.theta, base_sizes(config), provenance)
