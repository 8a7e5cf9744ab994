"""Live progress: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column


class TrainingDisplay:
    """Display of step, meta-loss, inner steps per second and the time left."""

    def __init__(self, first_step: int, num_steps: int, inner_steps: int) -> None:
        """Args: steps done before; steps of the run; inner steps per outer step."""
        self._total, self._inner = num_steps, inner_steps
        self._clock: float | None = None
        self._clock_step = first_step
        self._rate = 0.0
        self._progress: Progress | None = None
        if sys.stdout.isatty():
            self._progress = Progress(
                BarColumn(bar_width=None),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("meta-loss {task.fields[loss]}"),
                TextColumn("{task.fields[rate]} inner steps/s"),
                TextColumn("ETA {task.fields[eta]}"),
                console=Console(),
            )
            self._task = self._progress.add_task(
                "", total=num_steps, completed=first_step, loss="–", rate="–", eta="–"
            )

    def __enter__(self) -> TrainingDisplay:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress:
            self._progress.stop()

    def update(self, step: int, meta_loss: float) -> None:
        """Shows the progress; the clock starts with the first update."""
        self._measure(step)
        rate = eta = "–"
        if self._rate:
            rate = f"{self._rate:,.0f}"
            seconds = (self._total - step) * self._inner / self._rate
            eta = str(timedelta(seconds=round(seconds)))
        loss = f"{meta_loss:.4f}"
        if self._progress:
            self._progress.update(
                self._task, completed=step, loss=loss, rate=rate, eta=eta
            )
        else:
            print(
                f"step {step:>5}/{self._total}  meta-loss {loss}  "
                f"{rate:>6} inner steps/s  ETA {eta}",
                flush=True,
            )

    def restart_clock(self) -> None:
        """Leaves the time since the last update out of the rate."""
        self._clock = time.monotonic()

    def say(self, message: str) -> None:
        """Prints a line above the progress bar."""
        if self._progress:
            self._progress.console.print(message, markup=False, highlight=False)
        else:
            print(message, flush=True)

    def _measure(self, step: int) -> None:
        now = time.monotonic()
        if self._clock is not None and step > self._clock_step:
            steps = (step - self._clock_step) * self._inner
            rate = steps / max(now - self._clock, 1e-9)
            self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate
        self._clock, self._clock_step = now, step
