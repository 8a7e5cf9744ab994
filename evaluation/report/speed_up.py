"""How much sooner tuned Adam would have had to be, in steps.

The speed-up of a learner over tuned Adam at a horizon H: the step at which Adam's
training loss first reaches the one that the learner has at H, divided by H. Both losses
are exponential moving averages, and of Adam's the running minimum is taken. Above 1 the
learner is ahead. Adam is run to 4 H; where it has not come so far by then, more than 4
is all that is known. A learner that diverged has 0.

Reference: the metric of VeLO (Metz et al., arXiv:2211.09760, Figure 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DECAY = 0.95
"""Of the moving averages."""
REFERENCE_HORIZONS = 4
"""Adam is run to this many times the horizon."""


def smooth(curve: Sequence[float] | np.ndarray) -> np.ndarray:
    """Exponential moving average of losses `[H]`, begun at the first of them.

    What is not finite counts as infinite, and so does all that follows.
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
    """The speed-up of a learner at the end of its run.

    Args:
        learner: `[H]` losses of training batches, each before its update.
        references: of tuned Adam, any lengths. Where there are several (its run to H,
            and one with its schedule stretched over 4 H) the lowest of them counts at
            each step, so that no level is reached later than in either.
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
    """A speed-up in words: one that is not known exceeds what Adam was run to."""
    return f"> {REFERENCE_HORIZONS}" if value == math.inf else f"{value:.2f}"
