"""Signals that stop training between two outer steps, with a checkpoint."""

from __future__ import annotations

import os
import signal
from typing import Any

from jax.experimental import multihost_utils

from experiments.run import processes
from experiments.signals import STOPPING, handled, tell


class Interruption:
    """A request to stop, made by a signal while the `with` block runs.

    SIGINT, SIGTERM and SIGHUP are such signals, unless they are ignored. Among several
    processes SIGTERM is JAX's, which tells it to all of them; the others are passed on
    as SIGTERM.
    """

    def __init__(self) -> None:
        self._requested = False
        jax_has = {signal.SIGTERM} if processes.several() else set()
        self._handlers = handled(
            self._handle, [n for n in STOPPING if n not in jax_has]
        )

    def __enter__(self) -> Interruption:
        self._handlers.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.__exit__(None, None, None)

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
        tell("\nstopping after this step, with a checkpoint")
        if processes.several():
            os.kill(os.getpid(), signal.SIGTERM)
