"""Several processes that train together: how they meet, agree, and notice a loss.

They communicate by `jax.distributed` (gloo between CPUs, NCCL between GPUs). Only the
first process reads and writes the run directory and prints; its errors are told to all,
so that all stop with the same code.

When a process dies, the others end in bounded time: a collective of gloo fails at once
when a peer's connection closes, and otherwise (a machine without power, a process that
hangs, GPUs waiting for each other) JAX ends a process whose peer has sent no heartbeat
for `HEARTBEAT` seconds. The same command then continues from the newest checkpoint,
with any number of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import command_line
from experiments.command_line import INTERRUPTED, InputError
from experiments.run.run_directory import RunDirectory
from metatrain import devices

T = TypeVar("T")

PEER_LOST = 75
"""Exit code after another process was lost; that of a temporary failure in sysexits."""
HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as lost."""
MOST_CPU_DEVICES = 8
"""Most CPU devices by default: each holds a copy of resident data."""
_MESSAGE = 4096  # bytes of an error that is told to all
_SIGNS_OF_LOSS = ("gloo", "nccl", "connection closed by peer", "coordination service")


class SharedError(InputError):
    """An error of the first process that all processes raise together."""


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Address of process 0, number of processes, and index of this one."""

    coordinator: str
    num_processes: int
    process_id: int

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ValueError(
                f"--coordinator {self.coordinator!r} must be HOST:PORT of process 0"
            )
        if self.num_processes < 1:
            raise ValueError(f"--num-processes {self.num_processes} must be positive")
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process-id {self.process_id} must lie in "
                f"[0, {self.num_processes - 1}] (--num-processes {self.num_processes})"
            )


def take_meeting(arguments: Sequence[str]) -> tuple[Meeting | None, list[str]]:
    """Takes `--coordinator`, `--num-processes`, `--process-id` out of a command line.

    Raises:
        InputError: if some are missing or wrong.
    """
    names = ("--coordinator", "--num-processes", "--process-id")
    found: dict[str, str] = {}
    rest = list(arguments)
    for name in names:
        value, rest = command_line.take_option(rest, name)
        if value is not None:
            found[name] = value
    if not found:
        return None, rest
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"{' and '.join(missing)} must be given with {', '.join(found)}"
        )
    for name in names[1:]:
        if not re.fullmatch(r"-?\d{1,9}", found[name]):
            raise InputError(f"{name} {found[name]!r} must be a whole number")
    with command_line.reported():
        numbers = (int(found[name]) for name in names[1:])
        return Meeting(found["--coordinator"], *numbers), rest


def join(meeting: Meeting | None, hosts: str, num_devices: int | None) -> None:
    """Meets the other processes, if there are any, before JAX computes anything.

    Args:
        meeting: from the command line.
        hosts: "auto" lets JAX find the meeting in its environment.
        num_devices: devices per process; a CPU is made to show so many.

    Raises:
        InputError: if no meeting is found, or a process is missing.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if num_devices is not None and not forced:
        # JAX refuses once it has counted its devices.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_devices)
    if meeting is None and hosts == "one":
        return
    where: dict[str, Any] = {}
    if meeting is not None:
        where = {
            "coordinator_address": meeting.coordinator,
            "num_processes": meeting.num_processes,
            "process_id": meeting.process_id,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, **where)
    except (ValueError, RuntimeError) as error:
        if meeting is None and "should be defined" in str(error):
            raise InputError(
                "--run.hosts auto: JAX finds no SLURM, Kubernetes, MPI or TPU here; "
                "name the processes by --coordinator HOST:PORT --num-processes N "
                "--process-id I"
            ) from None
        raise InputError(f"the processes did not meet: {error}") from None
    if not is_first():
        # Until the process ends.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def cpu_devices(num_chunks: int, shown: int = MOST_CPU_DEVICES) -> int:
    """Returns the default number of CPU devices, at most `shown`, for the chunks."""
    if several():
        return 1
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return devices.largest_share(num_chunks, min(shown, cores, MOST_CPU_DEVICES))


def several() -> bool:
    """Whether this process trains with others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def on_first(work: Callable[[], T]) -> T | None:
    """Runs a function on the first process while the others wait, and get None.

    Raises:
        SharedError: on all processes, if it raised an `InputError` or an `OSError`.
    """
    if not several():
        return work()
    result, message = None, ""
    if is_first():
        try:
            with command_line.reported():
                result = work()
        except InputError as error:
            message = str(error) or "unknown error"
    text = message.encode()[:_MESSAGE]
    sent = devices.broadcast(np.frombuffer(text.ljust(_MESSAGE, b"\0"), np.uint8))
    if text := sent.tobytes().rstrip(b"\0"):
        raise SharedError(text.decode(errors="replace"))
    return result


def from_first(number: int | None) -> int:
    """Returns the first process's number on all processes."""
    return int(devices.broadcast(np.int32(number or 0))) if several() else number or 0


def check_equal(value: Any, what: str) -> None:
    """Checks that all processes have the same JSON value.

    Raises:
        SharedError: on all processes, naming the first that has another value.
    """
    if not several():
        return
    text = json.dumps([jax.__version__, value], sort_keys=True)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    all_digests = multihost_utils.process_allgather(digest)
    differing = np.flatnonzero((all_digests != all_digests[0]).any(axis=1))
    if differing.size:
        raise SharedError(
            f"process {differing[0]} was started with another {what} than process 0: "
            "give all processes the same command line but --process-id"
        )


@contextmanager
def run_directory(path: Path) -> Iterator[RunDirectory | None]:
    """Locks the run directory on the first process; the others get None."""
    directory = on_first(lambda: RunDirectory(path))
    with directory or contextlib.nullcontext():
        yield directory


class Pace:
    """Limit of one outer step that the host may be ahead of the devices.

    Queued programs with collectives can deadlock. Among processes on CPUs even two can:
    there the host waits for every step.
    """

    def __init__(self, shared: bool) -> None:
        """Args: whether several devices share the particles."""
        self._shared = shared
        self._ahead = not (several() and jax.default_backend() == "cpu")
        self._previous: Any = None

    def after(self, metrics: Any) -> None:
        """Waits as needed; takes the metrics of the outer step that was queued."""
        if self._shared:
            jax.block_until_ready(self._previous if self._ahead else metrics)
            self._previous = metrics


def run(main: Callable[[], None]) -> None:
    """Runs a command as `command_line.run`; all processes end together."""

    def together() -> None:
        try:
            main()
        except SharedError:
            first = is_first()
            _leave()
            if not first:
                raise SystemExit(command_line.BAD_INPUT) from None
            raise
        except SystemExit as stop:
            if stop.code == INTERRUPTED:
                _leave()
            raise
        _leave()

    try:
        command_line.run(together)
    except BaseException as error:
        if not several():
            raise
        _end(error)


def _leave() -> None:
    """Waits for all processes, which the first one serves until then."""
    if several():
        multihost_utils.sync_global_devices("leave")
        jax.distributed.shutdown()


def _end(error: BaseException) -> NoReturn:
    """Ends this process at once; a normal exit would wait for the others."""
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    elif any(sign in str(error).lower() for sign in _SIGNS_OF_LOSS):
        first_line = str(error).splitlines()[0][:300]
        print(
            f"error: another process was lost ({first_line}); run the same command to "
            "continue from the newest checkpoint",
            file=sys.stderr,
        )
        code = PEER_LOST
    else:
        traceback.print_exception(error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
