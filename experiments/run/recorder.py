"""What a training run records: a line per outer step, and what shows it meanwhile.

Metrics stay on the device until some have gathered: the device is waited for only now
and then, so that it is never without work.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from experiments.command_line import ComputationError
from experiments.presets.configs import TrainConfig
from experiments.run import processes
from experiments.run.display import TrainingDisplay
from experiments.run.run_directory import METRICS, TIMING, VALIDATION, RunDirectory
from experiments.run.sinks import VALIDATION_PREFIX, Sinks, open_sinks


class Recorder:
    """Collects metrics on the device and writes them a few at a time."""

    def __init__(
        self,
        config: TrainConfig,
        directory: RunDirectory,
        display: TrainingDisplay,
        inner_steps: int,
        step: int,
        skipped: int = 0,
    ) -> None:
        """Opens the sinks.

        Args:
            config: of the run.
            directory: its records.
            display: what shows it.
            inner_steps: of one outer step.
            step: outer steps done before.
            skipped: the last of them that were not taken, in a row.
        """
        self.config, self.directory, self.display = config, directory, display
        self.sinks = Sinks({})  # those of the first process show what there is
        if processes.is_first():
            self.sinks = open_sinks(config, directory.path, step)
        self._inner_steps = inner_steps
        self._skipped = skipped  # outer steps in a row that were not taken
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._clock = time.monotonic()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keeps one step's metrics; the device is waited for only now and then."""
        self._pending.append((step, metrics))
        if step == 1 or step % self.config.run.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending and shows the last of it."""
        if not self._pending:
            return
        rows: list[dict[str, Any]] = [
            {"step": step} | {name: _number(x) for name, x in sorted(metrics.items())}
            for step, metrics in self._pending
        ]
        self._pending.clear()
        self.directory.append(METRICS, rows)
        self.sinks.write(rows)
        now = time.monotonic()
        seconds = now - self._clock
        timing = {
            "step": rows[-1]["step"],
            "seconds": round(seconds, 3),
            "inner_steps_per_second": round(len(rows) * self._inner_steps / seconds, 1),
        }
        self.directory.append(TIMING, [timing])
        self._clock = now
        losses = [x for row in rows if (x := row["meta_loss"]) is not None]
        self.display.update(
            rows[-1]["step"], float(np.mean(losses)) if losses else float("nan")
        )
        for row in rows:
            self._count_skipped(row)

    def add_validation(self, row: dict[str, Any]) -> None:
        """Writes a validation at once."""
        self.directory.append(VALIDATION, [row])
        self.sinks.write([row], VALIDATION_PREFIX)

    def _count_skipped(self, row: dict[str, Any]) -> None:
        self._skipped = self._skipped + 1 if row["skipped"] else 0
        limit = self.config.outer.max_skipped
        if self._skipped >= limit:
            raise ComputationError(
                f"the meta-gradient of {limit} outer steps in a row, up to step "
                f"{row['step']}, was not finite and moved nothing; a smaller "
                "estimator.sigma or outer.clip_value may help (outer.max_skipped is "
                "the limit)"
            )


def _number(value: jax.Array) -> float | None:
    """A metric as JSON has it: null if it is not finite."""
    return float(value) if np.isfinite(float(value)) else None
