"""Simulated readers who grade the appearance of cases.

A reader sees a case's appearance, blurred by a noise that is the same in every session
and by one that is not, and counts how many of their thresholds it exceeds. Readers
agree because they look at the same appearance, and err together where it misleads; they
differ in sensitivity and in where grades begin.

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
    """One reader."""

    sensitivity: float = 1.0
    """Factor on the appearance; 0 sees nothing."""
    noise: float = 0.25
    """Standard deviation of the noise that is the same in every session."""
    session_noise: float = 0.2
    """Standard deviation of the noise of each session."""
    thresholds: tuple[float, ...] = (0.2, 0.7, 0.95)
    """Lower ends of grades 1, 2, ... on the scale of sensitivity × appearance."""

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
        """Returns grades `[n]` of all cases in one session.

        Args:
            appearance: appearance of the cases `[n]`.
            session: 0, 1, ...; only the noise of the session depends on it.
            seed: seed of this reader's noise, non-negative integers.
        """
        seen = self.sensitivity * np.asarray(appearance, np.float64)
        for scale, number in ((self.noise, 0), (self.session_noise, 1 + session)):
            noise = np.random.RandomState([*seed, number]).normal(size=seen.shape)
            seen = seen + scale * noise
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
    """Returns grades `[sessions, readers, n]` of all cases.

    Args:
        readers: the panel.
        appearance: appearance of the cases `[n]`.
        num_sessions: how often each reader reads.
        seed: seed of all noise.
    """
    return np.stack(
        [
            [r.read(appearance, session, (seed, i)) for i, r in enumerate(readers)]
            for session in range(num_sessions)
        ]
    )
