"""Records of a training run: a line per outer step, and the sinks that show it.

Metrics stay on the device until several have gathered, so that the device rarely waits
for the host.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from experiments.command_line import ComputationError
from experiments.presets.configs import TrainConfig
from experiments.run.display import TrainingDisplay
from experiments.run.run_directory import METRICS, TIMING, VALIDATION, RunDirectory
from experiments.run.sinks import VALIDATION_PREFIX, Sinks


class Recorder:
    """Collects metrics on the device and writes them several at a time."""

    def __init__(
        self,
        config: TrainConfig,
        directory: RunDirectory | None,
        sinks: Sinks,
        display: TrainingDisplay,
        inner_steps: int,
        skipped: int,
    ) -> None:
        """Begins with nothing pending.

        `directory` is None in processes other than the first, `inner_steps` counts
        those of one outer step, and `skipped` the last steps that moved nothing.
        """
        self._config, self._directory = config, directory
        self._sinks, self.display = sinks, display
        self._inner_steps = inner_steps
        self._skipped = skipped
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._clock = time.monotonic()

    def __enter__(self) -> Recorder:
        self.display.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sinks.__exit__(*error)
        self.display.__exit__(*error)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keeps one step's metrics, and flushes every `log_every` steps."""
        self._pending.append((step, metrics))
        if step == 1 or step % self._config.run.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending and shows the last of it.

        Raises:
            ComputationError: if too many meta-gradients in a row were not finite.
        """
        if not self._pending:
            return
        rows: list[dict[str, Any]] = [
            {"step": step} | {name: _number(x) for name, x in sorted(metrics.items())}
            for step, metrics in self._pending
        ]
        self._pending.clear()
        self._write(METRICS, rows)
        self._sinks.write(rows)
        now = time.monotonic()
        seconds = now - self._clock
        timing = {
            "step": rows[-1]["step"],
            "seconds": round(seconds, 3),
            "inner_steps_per_second": round(len(rows) * self._inner_steps / seconds, 1),
        }
        self._write(TIMING, [timing])
        self._clock = now
        losses = [x for row in rows if (x := row["meta_loss"]) is not None]
        mean_loss = float(np.mean(losses)) if losses else float("nan")
        self.display.update(rows[-1]["step"], mean_loss)
        for row in rows:
            self._count_skipped(row)

    def add_validation(self, row: dict[str, Any]) -> None:
        """Writes a validation at once."""
        self._write(VALIDATION, [row])
        self._sinks.write([row], VALIDATION_PREFIX)

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        if self._directory is not None:
            self._directory.append(name, rows)

    def _count_skipped(self, row: dict[str, Any]) -> None:
        self._skipped = self._skipped + 1 if row["skipped"] else 0
        limit = self._config.outer.max_skipped
        if self._skipped >= limit:
            raise ComputationError(
                f"the meta-gradient of {limit} outer steps in a row, up to step "
                f"{row['step']}, was not finite and moved nothing; a smaller "
                "estimator.sigma or outer.clip_value may help (outer.max_skipped is "
                "the limit)"
            )


def _number(value: jax.Array) -> float | None:
    """Returns a metric as JSON has it: null if it is not finite."""
    return float(value) if np.isfinite(float(value)) else None
