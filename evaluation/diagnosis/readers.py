"""Simulated readers: people who grade what they see, each in their own way.

A reader sees the appearance of a case, blurred by how they see this one case (the same
whenever they read it) and by how they see it today, and says how many of their
thresholds that exceeds. Readers agree because they look at the same appearance, and err
together where it misleads; they differ in how sharply they see and in where they begin
to call a grade.

The panel is made after Radiology 2023, 10.1148/radiol.230659: six readers, two
sessions, and for the dichotomies S0 | S1-3, S0-1 | S2-3 and S0-2 | S3 kappas between
readers of .34, .30 and .37 (their 95 % intervals: .31-.37, .27-.33, .33-.40), and AUCs
against biopsy of .49-.84, .57-.76 and .52-.81. On the default `tasks.data.speckle`
patients it lies in all of these ranges (`tests/evaluation/diagnosis/test_readers.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from configuration.fields import configuration


@configuration
class Reader:
    """How one reader sees and grades."""

    sensitivity: float = 1.0
    """Factor on the appearance; 0 sees nothing."""
    noise: float = 0.25
    """Deviation of how a case strikes this reader, the same in every session."""
    session_noise: float = 0.2
    """Deviation of what changes from session to session."""
    thresholds: tuple[float, ...] = (0.2, 0.7, 0.95)
    """Where grades 1, 2, ... begin, on the scale of sensitivity × appearance."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.sensitivity):
            raise ValueError(f"sensitivity = {self.sensitivity} must be finite")
        for name in ("noise", "session_noise"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")
        pairs = itertools.pairwise(self.thresholds)
        if not self.thresholds or not all(low < high for low, high in pairs):
            raise ValueError(f"thresholds = {self.thresholds} must ascend")

    def read(self, appearance: Any, session: int, seed: Sequence[int]) -> np.ndarray:
        """Grades of all cases in one session, `[n]` int.

        Args:
            appearance: of each case `[n]`.
            session: 0, 1, ...; only the session's own noise depends on it.
            seed: of this reader's noise, non-negative integers.
        """
        appearance = np.asarray(appearance, np.float64)
        lasting = np.random.RandomState([*seed, 0]).normal(size=appearance.shape)
        today = np.random.RandomState([*seed, 1 + session]).normal(
            size=appearance.shape
        )
        seen = self.sensitivity * appearance
        seen = seen + self.noise * lasting + self.session_noise * today
        return (seen[:, None] > np.array(self.thresholds)[None]).sum(1)


PANEL = (
    Reader(1.0, 0.25, 0.20, (0.20, 0.70, 0.95)),
    Reader(1.0, 0.30, 0.25, (0.00, 0.95, 1.00)),  # sees S1 early and S2 late
    Reader(1.0, 0.20, 0.20, (0.35, 0.40, 0.95)),  # has hardly a place for S1
    Reader(1.0, 0.25, 0.25, (0.05, 0.95, 1.00)),
    Reader(1.0, 0.25, 0.25, (0.35, 0.40, 0.95)),
    Reader(0.5, 0.70, 0.30, (0.15, 0.50, 0.85)),  # little better than chance
)
"""Six readers, as many and as different as the study's."""


def read_panel(
    readers: Sequence[Reader], appearance: Any, num_sessions: int = 2, seed: int = 0
) -> np.ndarray:
    """Grades `[sessions, readers, n]` int; the same seed gives the same ones.

    Args:
        readers: who reads.
        appearance: of each case `[n]`.
        num_sessions: how often.
        seed: of all noise.
    """
    return np.stack(
        [
            [r.read(appearance, session, (seed, i)) for i, r in enumerate(readers)]
            for session in range(num_sessions)
        ]
    )
