"""Releases a run's best θ: `python -m experiments.export RUN_DIR OUT_DIR`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from configuration.fields import configuration
from experiments import command_line
from experiments.command_line import InputError, reported
from experiments.presets.serialization import encode
from experiments.run.release import make_artifact
from experiments.run.run_directory import read_parent
from experiments.run.training_state import load_trained
from experiments.signals import unwinding


@configuration
class Export:
    """Export of a run's best validated θ as an artifact."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Run directory of experiments.train, finished or not."""
    out_dir: Annotated[Path, tyro.conf.Positional]
    """Folder to write; must not exist."""


def main() -> None:
    """Command line."""
    arguments = command_line.parse(Export, "python -m experiments.export", sys.argv[1:])
    if arguments.out_dir.exists():
        raise InputError(f"{arguments.out_dir} exists already; choose a new folder")
    config, state, about = load_trained(arguments.run_dir)
    with reported():
        parent = read_parent(arguments.run_dir)
        artifact = make_artifact(config, encode(config), state, about, parent)
        with unwinding():
            artifact.save(arguments.out_dir)
    print(f"released {arguments.out_dir} (θ of step {int(state.best.step)})")


if __name__ == "__main__":
    command_line.run(main)
