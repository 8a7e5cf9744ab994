"""What a training run's state depends on beside its configuration.

Each checkpoint says which data, versions and settings made it, and which code of
classes from outside. A run goes on where all that is as it is today. After an upgrade
it goes on if `--run.despite` names what may differ; the checkpoints after that, and the
released artifact, say so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from configuration import identity
from configuration.identity import UnidentifiedError
from experiments.presets.configs import DESPITE, TrainConfig
from tasks.description import data_identity

IDENTITY, REASON, CONTINUED = "identity", "no identity", "continued"


def origin(config: TrainConfig) -> dict[str, Any]:
    """Returns the identity of a run's data, versions and settings, or why it has none.

    Raises:
        ValueError: if data is missing.
    """
    try:
        found = {g.name: data_identity(g.task) for g in config.distribution.groups}
        data, code = identity.split(found)
        # Of classes that are registered from outside; ours have a version.
        for part in (config.task, config.lopt, config.estimator):
            code |= identity.split(identity.of(part))[1]
    except UnidentifiedError as error:
        return {REASON: str(error)}
    return {IDENTITY: {"data": data, "code": code} | identity.surroundings()}


def check(
    path: Path, stored: Any, now: dict[str, Any], despite: tuple[str, ...]
) -> None:
    """Refuses a checkpoint of other data, versions or settings.

    Args:
        path: the checkpoint, for messages.
        stored: what it says; None if it is of a version that said nothing.
        now: `origin` of the run that goes on.
        despite: names of differences that are meant.

    Raises:
        ValueError: naming what differs, and what to do.
    """
    if stored is None:
        warning = "does not say its data, versions and settings: they are not compared"
        print(f"warning: {path} {warning}", file=sys.stderr)
        return
    for side in (stored, now):
        if IDENTITY not in side:
            raise ValueError(
                f"{path} cannot be continued, for its data cannot be identified: "
                f"{side.get(REASON)}"
            )
    changed = _changed(stored, now)
    refused = {name: line for name, line in changed.items() if name not in despite}
    if refused:
        kinds = dict.fromkeys(name.partition(".")[0] for name in refused)
        raise ValueError(
            f"{path} was made with other {' and '.join(kinds)} "
            f"({identity.described(refused)}): bring them back"
            f"{_remedy(refused)}, or choose another --run.directory"
        )


def continued(stored: Any, now: dict[str, Any], step: int) -> dict[str, Any]:
    """Returns `now`, with the differences at each step from which the run went on."""
    before = (stored or {}).get(CONTINUED, [])
    changed = _changed(stored, now) if stored else {"identity": "unknown"}
    if changed:
        before = [*before, {"step": step, "differences": changed}]
    return now | ({CONTINUED: before} if before else {})


def _changed(stored: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    return identity.differences(stored.get(IDENTITY), now.get(IDENTITY))


def _remedy(refused: dict[str, str]) -> str:
    if not all(name.startswith(DESPITE) for name in refused):
        return ""
    return f", go on with --run.despite {' '.join(refused)}"
