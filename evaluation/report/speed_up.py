"""Speed-up of a learner over tuned Adam, in steps.

At a horizon H it is the step at which Adam's training loss first reaches that of the
learner at H, divided by H; above 1 the learner is ahead. Both losses are exponential
moving averages, and Adam's counts with its running minimum. Adam is run to 4 H: where
it does not come so far, the speed-up is only known to exceed 4. A learner that diverged
has 0.

Reference: the metric of VeLO (Metz et al., arXiv:2211.09760, Figure 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DECAY = 0.95
"""Decay of the moving averages."""
REFERENCE_HORIZONS = 4
"""Length of Adam's run, in horizons."""


def smooth(curve: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns the exponential moving average of losses `[H]`, from the first on.

    It is infinite from the first loss that is not finite.
    """
    losses = np.asarray(curve, np.float64)
    losses = np.where(np.isfinite(losses), losses, math.inf)
    averages = np.empty_like(losses)
    average = losses[0] if len(losses) else math.inf
    for step, loss in enumerate(losses):
        average = DECAY * average + (1.0 - DECAY) * loss
        averages[step] = average
    return averages


def speed_up(
    learner: Sequence[float],
    references: Sequence[Sequence[float]],
    *,
    diverged: bool = False,
) -> float:
    """Returns the speed-up of a learner at the end of its run.

    Args:
        learner: `[H]` training-batch losses before each update.
        references: such losses of tuned Adam, of any lengths. With several (a run to H
            and one with its schedule stretched over 4 H) the lowest counts at each
            step, so no level is reached later than in any.
        diverged: whether the learner's run diverged.

    Returns:
        Steps of Adam over H; infinity if Adam does not come so far; 0 for a learner
        that diverged.

    Raises:
        ValueError: if a curve is empty.
    """
    if not len(learner) or not references or not all(map(len, references)):
        raise ValueError("a speed-up needs the learner's losses and those of Adam")
    level = smooth(learner)[-1]
    if diverged or not math.isfinite(level):
        return 0.0
    lowest = np.full(max(map(len, references)), math.inf)
    for reference in references:
        averages = smooth(reference)
        lowest[: len(averages)] = np.minimum(lowest[: len(averages)], averages)
    reached = np.flatnonzero(lowest <= level)
    return float(reached[0] + 1) / len(learner) if len(reached) else math.inf


def format_speed_up(value: float) -> str:
    """Formats a speed-up; an infinite one as "> 4"."""
    return f"> {REFERENCE_HORIZONS}" if value == math.inf else f"{value:.2f}"
