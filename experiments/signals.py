"""Handlers of the signals by which a command is told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, the request of a scheduler or of `kill`, and the end of the terminal."""


@contextlib.contextmanager
def handled(
    handler: Callable[[int, Any], object],
    numbers: Collection[signal.Signals] = STOPPING,
) -> Iterator[None]:
    """Handles signals while the block runs, except those that are ignored.

    A shell ignores SIGINT in background jobs and nohup ignores SIGHUP: they stay so.
    Only the main thread can have handlers; in others nothing changes.
    """
    old: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in numbers}
        old = {n: h for n, h in before.items() if h is not signal.SIG_IGN}
    for number in old:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def unwinding() -> contextlib.AbstractContextManager[None]:
    """Lets SIGINT raise `KeyboardInterrupt`, for a block that then cleans up."""
    return handled(signal.default_int_handler, (signal.SIGINT,))


def tell(message: str) -> None:
    """Writes a line to standard error, from a handler.

    A terminal that is gone would make every later output an error: output that can no
    longer be written is discarded.
    """
    for descriptor, line in ((1, b""), (2, message.encode() + b"\n")):
        try:
            os.write(descriptor, line)
        except OSError:
            with contextlib.suppress(OSError):
                discard_output(descriptor)


def discard_output(descriptor: int) -> None:
    """Sends what is written to a file descriptor to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)
