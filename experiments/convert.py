"""Learned optimizers of other libraries: `python -m experiments.convert FROM TO`.

Reads a folder of PyLO, a file of Celo or of learned_optimization, or an artifact, and
writes an artifact, or with `--to pylo` a folder that PyLO reads.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments import command_line
from experiments.command_line import InputError, reported
from lopt.artifact import Artifact
from lopt.integrity import SUMS
from lopt.interchange import celo, learned_optimization, pylo, pylo_velo

Kind = Literal["auto", "artifact", "pylo", "pylo_elo", "celo", "learned_optimization"]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Reads a learned optimizer in one form and writes it in another."""

    source: Annotated[Path, tyro.conf.Positional]
    """A folder of PyLO or of an artifact, or a file of Celo or learned_optimization."""
    target: Annotated[Path, tyro.conf.Positional]
    """The folder to write; must not exist."""
    kind: Kind = "auto"
    """What the source is; files of Celo and learned_optimization are told apart by
    their tensors. pylo_elo: a MetaMLP that is ELO, not μLO."""
    scheduler: Path | None = None
    """The second folder of a VeLO of PyLO, read or written."""
    to: Literal["artifact", "pylo"] = "artifact"
    """What is written."""


def read(convert: Convert) -> Artifact:
    """The optimizer of the source.

    Raises:
        ValueError: in one line, naming the file that is not understood.
    """
    source, kind = convert.source, convert.kind
    if kind == "auto" and source.is_dir():
        kind = "artifact" if (source / SUMS).is_file() else "pylo"
    if kind == "artifact":
        return Artifact.load(source)
    if kind == "pylo_elo":
        return pylo.load_elo(source)
    if kind == "pylo" and convert.scheduler is not None:
        return pylo_velo.load(source, convert.scheduler)
    if kind == "pylo":
        return pylo.load(source)
    if kind == "celo":
        return celo.load(source)
    if kind == "learned_optimization":
        return learned_optimization.load(source)
    try:
        return celo.load(source)
    except ValueError as error:
        if "no theta of a class" not in str(error):
            raise
        return learned_optimization.load(source)


def write(artifact: Artifact, convert: Convert) -> None:
    """Writes the target.

    Raises:
        ValueError: if there is no such form of the optimizer.
    """
    if convert.to == "artifact":
        artifact.save(convert.target)
    elif convert.scheduler is not None:
        pylo_velo.save(artifact, convert.target, convert.scheduler)
    else:
        pylo.save(artifact, convert.target)


def main() -> None:
    """Command line."""
    program = "python -m experiments.convert"
    convert = command_line.parse(Convert, program, sys.argv[1:])
    if convert.target.exists():
        raise InputError(f"{convert.target} exists already; choose a new folder")
    with reported():
        artifact = read(convert)
        write(artifact, convert)
    print(f"wrote {convert.target}: {artifact.optimizer}")


if __name__ == "__main__":
    command_line.run(main)
