"""The first moments of a command, before anything slow is imported."""

from __future__ import annotations

import os
import signal
import sys

X64 = "JAX_ENABLE_X64"


def prepare() -> None:
    """Prepares a process that becomes a command.

    * Until `command_line.run` has its own handler, SIGINT ends the process at once:
      Python's handler would raise `KeyboardInterrupt` inside an import, or inside a
      callback that drops it.
    * Closed standard streams are opened on /dev/null: otherwise the next file would
      become descriptor 2, and messages would be written into it.
    * JAX makes float32 numbers by default. The environment may ask for float64, in
      which no program here is written.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_standard_streams()
    if os.environ.get(X64, "").lower() in ("y", "yes", "t", "true", "on", "1"):
        os.environ[X64] = "0"
        print(
            f"warning: {X64} is ignored: commands compute in float32", file=sys.stderr
        )


def _open_standard_streams() -> None:
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # All lower ones are open, so this one is taken.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            stream = open(  # noqa: SIM115 (stays open)
                descriptor, mode, encoding="utf-8", closefd=False
            )
            setattr(sys, name, stream)
