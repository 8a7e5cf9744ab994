"""Training by several processes of one machine: `python -m experiments.hosts`.

    python -m experiments.hosts --processes 2 -- PRESET [--field value ...]

starts the processes of one `experiments.train PRESET ...`, which train together (see
`experiments.run.processes`). Signals are passed on to all of them. When one ends, the
others have `--grace` seconds to end before they are killed. The exit code is the
largest of theirs, where signal n counts as 128 + n.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from experiments import command_line
from experiments.command_line import INTERRUPTED, InputError
from experiments.signals import handled, tell

GRACE = 60.0
TRAIN = (sys.executable, "-m", "experiments.train")
SILENT = ", as JAX ends where another one was silent for long"
_TICK = 0.1  # seconds between looks at the processes


def free_port() -> int:
    """Returns an unused port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(
    num: int,
    arguments: Sequence[str],
    grace: float = GRACE,
    program: Sequence[str] = TRAIN,
) -> int:
    """Starts the processes, waits for all of them, and returns the exit code.

    `grace` is the time in seconds between the end of the first process, or a second
    signal, and the killing of the others.
    """
    where = f"127.0.0.1:{free_port()}"
    command = [*program, *arguments, "--coordinator", where]
    command += ["--num-processes", str(num), "--process-id"]
    started: list[subprocess.Popen[bytes]] = []
    signals: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        del frame
        signals.append(number)
        for process in started:
            process.send_signal(number)

    with handled(pass_on):
        try:
            for index in range(num):
                # In their own session, so that Ctrl-C reaches them once, through us.
                started.append(
                    subprocess.Popen([*command, str(index)], start_new_session=True)
                )
            _wait(started, signals, grace)
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()
    return max(_code(process) for process in started)


def _wait(
    started: list[subprocess.Popen[bytes]], signals: list[int], grace: float
) -> None:
    deadline = float("inf")
    while True:
        # Looked at once: all may end between two looks, and the first is to be named.
        ended = [i for i, process in enumerate(started) if process.poll() is not None]
        if deadline == float("inf") and (ended or len(signals) > 1):
            deadline = time.monotonic() + grace
            for index in ended:
                if (code := _code(started[index])) not in (0, INTERRUPTED):
                    how = f"{code}{SILENT * (code == 128 + signal.SIGABRT)}"
                    _say(f"process {index} ended with code {how}; so will the others")
        left = len(started) - len(ended)
        if not left:
            return
        if time.monotonic() > deadline:
            _say(f"{left} still run after {grace:g} s: they are killed")
            return
        time.sleep(_TICK)


def _code(process: subprocess.Popen[bytes]) -> int:
    code = process.wait()
    return code if code >= 0 else 128 - code


def _say(message: str) -> None:
    tell(f"hosts: {message}")


class _OneLine(argparse.ArgumentParser):
    """A parser that reports errors in one line, as the other commands do."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main() -> None:
    """Command line."""
    parser = _OneLine(
        prog="python -m experiments.hosts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--grace", type=float, default=GRACE, metavar="SECONDS")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- PRESET ...")
    given = parser.parse_args()
    arguments = given.arguments
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    if given.processes < 1:
        raise InputError(f"--processes {given.processes} must be positive")
    if not 0.0 <= given.grace < float("inf"):
        raise InputError(f"--grace {given.grace} must be seconds, 0 or more")
    if not arguments:
        raise InputError("give the arguments of experiments.train after --")
    raise SystemExit(launch(given.processes, arguments, given.grace))


if __name__ == "__main__":
    command_line.run(main)
