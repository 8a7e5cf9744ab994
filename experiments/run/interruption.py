"""Signals that stop training between two outer steps, with a checkpoint."""

from __future__ import annotations

import os
import signal
from typing import Any

from jax.experimental import multihost_utils

from experiments.run import processes


class Interruption:
    """A request to stop, made by SIGINT or SIGTERM while the `with` block runs.

    Among several processes SIGTERM is JAX's, which tells it to all of them; SIGINT is
    passed on as SIGTERM.
    """

    def __init__(self) -> None:
        self._requested = False
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        caught = [signal.SIGINT] + [signal.SIGTERM] * (not processes.several())
        self._old = {number: signal.signal(number, self._handle) for number in caught}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Whether to stop after this outer step; the same answer in all processes.

        All processes must ask after every step. They stop after the first step that
        none of them has finished when the signal arrives.
        """
        if not processes.several():
            return self._requested
        return multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, number: int, frame: Any) -> None:
        del number, frame
        self._requested = True
        os.write(2, b"\nstopping after this step, with a checkpoint\n")
        if processes.several():
            os.kill(os.getpid(), signal.SIGTERM)
