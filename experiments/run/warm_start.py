"""Meta-training that begins with the θ of an artifact: `--init-from ARTIFACT`.

Parts of θ (its names at the top level) that the artifact has are taken from it, others
begin as they always do, so a scheduler can be learned around a rule of an earlier
phase. The state of the outer optimizer is fresh. What was taken is recorded in
`parent.json` when the run begins, and then in the provenance of what it releases.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from configuration.files import SUMS
from lopt.base import LearnedOptimizer, Theta, first_difference
from lopt.release.artifact import Artifact


def parent_of(folder: Path, artifact: Artifact, parts: list[str]) -> dict[str, Any]:
    """What is recorded of an artifact that a run begins with.

    Returns:
        Its path, the checksum of its checksums, its class, the parts of θ that were
        taken, and its own provenance, which names its parent if it had one.
    """
    return {
        "path": str(folder),
        "sha256": hashlib.sha256((folder / SUMS).read_bytes()).hexdigest(),
        "class": type(artifact.optimizer).__name__,
        "parts": parts,
        "provenance": dict(artifact.provenance),
    }


def begin_with(
    artifact: Artifact, lopt: LearnedOptimizer, fresh: Theta, folder: Path
) -> tuple[Theta, list[str]]:
    """θ to begin with, and the parts of it that come from the artifact.

    Args:
        artifact: whose θ is wanted.
        lopt: the optimizer that is trained.
        fresh: its initial θ.
        folder: of the artifact, for messages.

    Raises:
        ValueError: if the artifact is of another class, or a part does not fit.
    """
    there, here = type(artifact.optimizer).__name__, type(lopt).__name__
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
