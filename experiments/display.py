"""Live progress: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class TrainingDisplay:
    """Shows step, meta-loss, inner steps per second and the time left."""

    def __init__(self, first_step: int, num_steps: int, inner_steps: int) -> None:
        """Args: steps done before; steps of the run; inner steps of one outer step."""
        self._first, self._total, self._inner = first_step, num_steps, inner_steps
        self._start: float | None = None
        self._start_step = first_step
        self._progress: Progress | None = None
        if sys.stdout.isatty():
            self._progress = Progress(
                TextColumn("meta-training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("meta-loss {task.fields[loss]}"),
                TextColumn("{task.fields[rate]} inner steps/s"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=Console(),
            )
            self._task = self._progress.add_task(
                "", total=num_steps, completed=first_step, loss="–", rate="–"
            )

    def __enter__(self) -> TrainingDisplay:
        """Starts the live display."""
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the terminal as it was."""
        if self._progress:
            self._progress.stop()

    def update(self, step: int, meta_loss: float) -> None:
        """Shows where training stands; the clock starts after the first update."""
        now = time.monotonic()
        rate = self._rate(step, now)
        shown = f"{rate:,.0f}" if rate else "–"
        if self._progress:
            self._progress.update(
                self._task, completed=step, loss=f"{meta_loss:.4f}", rate=shown
            )
        else:
            left = (self._total - step) * self._inner / rate if rate else None
            eta = "–" if left is None else str(timedelta(seconds=round(left)))
            print(
                f"step {step:>5}/{self._total}  meta-loss {meta_loss:.4f}  "
                f"{shown:>6} inner steps/s  ETA {eta}",
                flush=True,
            )

    def say(self, message: str) -> None:
        """Prints a line above the progress bar."""
        if self._progress:
            self._progress.console.print(message, markup=False, highlight=False)
        else:
            print(message, flush=True)

    def _rate(self, step: int, now: float) -> float:
        if self._start is None:
            self._start, self._start_step = now, step
            return 0.0
        return (step - self._start_step) * self._inner / max(now - self._start, 1e-9)
