"""What an evaluation depends on, as a whole and job by job.

A job is one optimizer in one cell. It depends on less than the whole does, so an
evaluation with another artifact finds the baselines' jobs again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from configuration import identity
from configuration.identity import UnidentifiedError
from evaluation.plan import (
    BASELINES,
    LEARNED,
    MU_ADAM,
    MU_ADAM_TUNED,
    source_of_transfer,
)
from evaluation.results import SCHEMA_VERSION
from evaluation.tune import TUNING
from lopt.release.artifact import Artifact
from tasks.suites import Cell, Suite

_REASON = "unidentified"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """An artifact in a suite of cells, on some seeds."""

    suite: Suite
    artifact: Artifact
    seeds: Sequence[int]
    skipped: Sequence[str] = ()
    """Cells that cannot run here: a report names them."""
    stream: bool = False
    """Whether training rows are streamed: programs round differently."""

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The identity of the whole, when it was first asked for; else why not."""
        try:
            return {
                "schema": SCHEMA_VERSION,
                "suite": self.suite.name,
                "aggregate": self.suite.aggregate,
                "cells": {cell.name: identity.of(cell) for cell in self.suite.cells},
                "artifact": identity.of(self.artifact),
                "seeds": list(self.seeds),
                "skipped": list(self.skipped),
                "stream": self.stream,
                "tuning": TUNING,
            } | identity.surroundings()
        except UnidentifiedError as error:
            return {_REASON: str(error)}

    @property
    def unidentified(self) -> str | None:
        """Why there is no identity; None if there is one."""
        return self.identity.get(_REASON)

    def job(self, cell: Cell, name: str) -> dict[str, Any]:
        """Returns the identity of one optimizer in one cell."""
        whole = self.identity
        optimizer: dict[str, Any] = {"name": name}
        if name == LEARNED:
            optimizer |= {
                n: whole["artifact"][n] for n in ("optimizer", "theta", "base")
            }
        elif name == MU_ADAM:
            assert self.suite.trained is not None
            trained = whole["cells"][self.suite.trained.name]
            source = source_of_transfer(self.suite)
            baseline = identity.of(BASELINES[MU_ADAM_TUNED])
            optimizer |= {"baseline": baseline, "tuned": [source, trained]}
        else:
            optimizer |= {"baseline": identity.of(BASELINES[name])}
        left_out = ("suite", "cells", "artifact", "skipped")
        about = {n: part for n, part in whole.items() if n not in left_out}
        return about | {"cell": whole["cells"][cell.name], "optimizer": optimizer}

    def check(self, cell: Cell | None = None) -> None:
        """Checks that a cell, or all, is what it was when the evaluation began.

        Raises:
            ValueError: naming what has changed.
        """
        if self.unidentified:
            return
        cells = self.suite.cells if cell is None else (cell,)
        before = {c.name: self.identity["cells"][c.name] for c in cells}
        now = {c.name: identity.of(c) for c in cells}
        if changed := identity.differences(before, now):
            raise ValueError(
                f"{identity.described(changed)}: changed during the evaluation; run it "
                "again"
            )
