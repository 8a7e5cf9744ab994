"""Conversion between libraries: `python -m experiments.convert FROM TO`.

Reads a folder of PyLO, a file of Celo or learned_optimization (their own, or an npz of
the same arrays by path), or an artifact, and writes an artifact, or with `--to pylo` a
folder for PyLO.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from configuration import encoding
from configuration.fields import configuration
from configuration.files import SUMS, read_text
from experiments import command_line
from experiments.command_line import InputError, reported
from experiments.signals import unwinding
from lopt.interchange import celo, learned_optimization, pylo, pylo_velo
from lopt.release import registry
from lopt.release.artifact import CONFIG, WEIGHTS, Artifact

Kind = Literal["auto", "artifact", "pylo", "pylo_elo", "celo", "learned_optimization"]


@configuration
class Convert:
    """Conversion of a learned optimizer from one form to another."""

    source: Annotated[Path, tyro.conf.Positional]
    """A folder of PyLO or of an artifact, or a file of Celo or learned_optimization; an
    .npz holds θ by path, as `nn/~/w0` or `theta/nn/~/w0`."""
    target: Annotated[Path, tyro.conf.Positional]
    """Folder to write; must not exist."""
    kind: Kind = "auto"
    """Form of the source; auto tells files of Celo and learned_optimization apart by
    their tensors. pylo_elo: a MetaMLP that is ELO, not μLO."""
    scheduler: Path | None = None
    """Second folder of a VeLO of PyLO, read or written."""
    to: Literal["artifact", "pylo"] = "artifact"
    """Form of the target."""
    fields: tuple[str, ...] = ()
    """Fields of the optimizer that the source does not hold, as NAME=VALUE: for example
    step_mult=0.01 rules=ADAM_LIKE bugged_losses=true."""


def read(convert: Convert) -> Artifact:
    """Reads the optimizer of the source, or raises `ValueError`."""
    source, kind = convert.source, convert.kind
    if kind == "auto" and source.is_dir():
        kind = "artifact" if _is_artifact(source) else "pylo"
    if kind == "pylo" and convert.scheduler is not None:
        return pylo_velo.load(source, convert.scheduler)
    if kind != "auto":
        return _READERS[kind](source)
    try:
        return celo.load(source)
    except ValueError as first:
        try:
            return learned_optimization.load(source)
        except ValueError as second:
            raise second if _UNKNOWN in str(first) else first from None


_READERS: dict[str, Callable[[Path], Artifact]] = {
    "artifact": Artifact.load,
    "pylo": pylo.load,
    "pylo_elo": pylo.load_elo,
    "celo": celo.load,
    "learned_optimization": learned_optimization.load,
}
_UNKNOWN = "no theta of a class"


def _is_artifact(folder: Path) -> bool:
    """Whether a folder is ours: PyLO's config.json has no version.

    A folder without weights, such as a run's, is for the reader of artifacts to refuse.
    """
    if not (folder / WEIGHTS).exists():
        return True
    try:
        config = json.loads(read_text(folder / CONFIG))
    except (OSError, ValueError, RecursionError):
        return (folder / SUMS).is_file()
    return isinstance(config, dict) and "schema_version" in config


def with_fields(artifact: Artifact, changes: Sequence[str]) -> Artifact:
    """Returns the same θ with other fields, given as `NAME=VALUE` with VALUE in JSON.

    Raises:
        ValueError: naming the field that is unknown or wrong, or θ if it does not fit.
    """
    if not changes:
        return artifact
    optimizer = encoding.encode(artifact.optimizer, registry.KINDS)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--fields {change!r} must be NAME=VALUE")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        optimizer[name] = value
    changed = encoding.decode_kind(optimizer, "optimizer", registry.KINDS)
    return dataclasses.replace(artifact, optimizer=changed)


def write(artifact: Artifact, convert: Convert) -> None:
    """Writes the target; raises `ValueError` if the optimizer has no such form."""
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
    writes_two = convert.to == "pylo" and convert.scheduler is not None
    for folder in (convert.target, *([convert.scheduler] if writes_two else [])):
        if folder is not None and folder.exists():
            raise InputError(f"{folder} exists already; choose a new folder")
    with reported():
        artifact = with_fields(read(convert), convert.fields)
        with unwinding():
            write(artifact, convert)
    print(f"wrote {convert.target}: {artifact.optimizer}")


if __name__ == "__main__":
    command_line.run(main)
