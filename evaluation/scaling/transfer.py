"""Transfer of the learning rate between widths.

In μP a learning rate that is tuned on a narrow network is right for a wide one; in the
standard parametrization the best rate moves. Every width is trained with every learning
rate of a grid on the same seeds.

Reference: Yang et al., Tensor Programs V, arXiv:2203.03466, Figure 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from evaluation.run import evaluate_each
from lopt.baselines import Baseline
from tasks.base import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Transfer:
    """Losses over widths and learning rates."""

    widths: tuple[int, ...]
    """Ascending (`W`)."""
    rates: tuple[float, ...]
    """Learning rates, ascending (`R`)."""
    losses: np.ndarray
    """Mean loss over all steps, capped at divergence, `[W, R, seeds]`."""
    diverged: np.ndarray
    """Which runs diverged, `[W, R, seeds]` bool."""

    def best(self) -> tuple[float, ...]:
        """Returns each width's best learning rate, on the mean over seeds."""
        return tuple(self.rates[i] for i in self.losses.mean(2).argmin(1))

    def shift(self) -> float:
        """Returns by how many octaves the best rate moves, narrowest to widest."""
        best = self.best()
        return math.log2(best[-1] / best[0])

    def penalty(self) -> float:
        """Returns the widest's relative excess loss with the narrowest's best rate."""
        losses = self.losses.mean(2)
        kept = losses[-1, losses[0].argmin()]
        return float(kept / losses[-1].min() - 1.0)

    def table(self) -> str:
        """Formats a line per learning rate, a column per width.

        `*` marks the best, `†` means of which a run diverged and counts as the cap.
        """
        losses, diverged = self.losses.mean(2), self.diverged.any(2)
        best = losses.argmin(1)
        lines = [f"{'rate':>10}" + "".join(f"{width:>11}" for width in self.widths)]
        for j, rate in enumerate(self.rates):
            line = f"{rate:>10.5f}"
            for loss, flag, i in zip(losses[:, j], diverged[:, j], best, strict=True):
                marks = "*" * int(i == j) + "†" * int(flag)
                line += f"{loss:>9.4f}{marks:<2}"
            lines.append(line.rstrip())
        if diverged.any():
            lines.append("† a run diverged; each capped loss is 1.5 × that at chance")
        return "\n".join(lines)


def learning_rate_transfer(
    tasks: Mapping[int, Task],
    baseline: Baseline,
    rates: Sequence[float],
    num_steps: int,
    seeds: Sequence[int],
    report: Callable[[str], None] = lambda line: None,
) -> Transfer:
    """Trains every width with every learning rate.

    Args:
        tasks: the same task by width, in the parametrization to be judged.
        baseline: the optimizer; its own learning rate is replaced.
        rates: the grid.
        num_steps: inner steps of a run (`H`).
        seeds: seeds of the runs, the same everywhere.
        report: called with a line after each width.

    Raises:
        ValueError: if there are fewer than two widths or learning rates.
    """
    widths, rates = tuple(sorted(tasks)), tuple(sorted(rates))
    if len(widths) < 2 or len(rates) < 2:
        raise ValueError(f"widths {widths} and rates {rates} must be at least two each")
    grid = {"learning_rate": jnp.repeat(jnp.asarray(rates, jnp.float32), len(seeds))}
    repeated = list(seeds) * len(rates)
    losses, diverged = [], []
    for width in widths:
        result = evaluate_each(tasks[width], baseline, grid, num_steps, repeated)
        shape = (len(rates), len(seeds))
        losses.append(result.mean_loss.reshape(shape))
        diverged.append(result.diverged.reshape(shape))
        best = rates[int(losses[-1].mean(1).argmin())]
        report(f"width {width}: best learning rate {best:.4g}")
    return Transfer(widths, rates, np.asarray(losses, np.float64), np.asarray(diverged))
