"""Sinks that show metrics beside their record: TensorBoard and Weights & Biases.

`metrics.jsonl` is the record of a run, and resuming trusts it alone. A sink shows the
same rows; one that fails is switched off after a warning, and the run continues
unchanged. Values that are not finite numbers are left out.
"""

from __future__ import annotations

import importlib
import math
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from configuration.files import read_text, write_text
from experiments.command_line import InputError
from experiments.presets.configs import RunOptions

TENSORBOARD = "tensorboard"
"""Folder of the event files in a run directory."""

WANDB_ID = "wandb_id"
"""File in a run directory with the run's id at Weights & Biases."""

VALIDATION_PREFIX = "validation/"

_PACKAGES = {"tensorboardX": "tensorboardX==2.6.5", "wandb": "wandb"}


class Sink(Protocol):
    """A consumer of metrics, which may fail in any way."""

    def write(self, step: int, row: Mapping[str, float | None]) -> None:
        """Shows the finite metrics of an outer step."""
        ...

    def flush(self) -> None:
        """Makes visible what was written."""
        ...

    def close(self) -> None:
        """Ends the sink."""
        ...


class TensorBoard:
    """Event files in a folder, one per start of the run.

    The first event of a file names the step at which the run continues, as the
    `purge_step` of a `SummaryWriter`: TensorBoard then forgets later steps of earlier
    files. Records are written in the calling thread, unlike by tensorboardX's own
    writer, whose thread may die of a full disk and leave the run waiting at its queue.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Args: the folder, made if needed; outer steps done before."""
        with _torch_hidden():
            proto = importlib.import_module("tensorboardX.proto.event_pb2")
            summary = importlib.import_module("tensorboardX.proto.summary_pb2")
            records = importlib.import_module("tensorboardX.record_writer")
        self._event: Callable[..., Any] = proto.Event
        self._summary: Callable[..., Any] = summary.Summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, hence of time.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file: Any = records.RecordWriter(str(folder / f"{name}.{os.getpid()}"))
        self._put(file_version="brain.Event:2")
        start = proto.SessionLog(status=proto.SessionLog.START)
        self._put(step=step + 1, session_log=start)
        self._file.flush()

    def write(self, step: int, row: Mapping[str, float | None]) -> None:
        """Writes one event with all metrics of the step."""
        value = self._summary.Value  # pyright: ignore
        values = [value(tag=tag, simple_value=x) for tag, x in row.items()]
        self._put(step=step, summary=self._summary(value=values))

    def flush(self) -> None:
        """Flushes the file."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _put(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())


class WeightsAndBiases:
    """A run at Weights & Biases; a resumed run continues the same one."""

    def __init__(self, folder: Path, project: str, config: dict[str, Any]) -> None:
        """Args: the run directory; the project; the configuration to show there."""
        wandb: Any = importlib.import_module("wandb")
        identity = folder / WANDB_ID
        if not identity.exists():
            write_text(identity, secrets.token_hex(8) + "\n")
        self._run: Any = wandb.init(
            project=project,
            id=read_text(identity).strip(),
            resume="allow",
            name=folder.name,
            dir=str(folder),
            config={k: v for k, v in config.items() if k != "run"},
        )
        # Earlier steps are there already, with the same values.
        self._first: int = self._run.step

    def write(self, step: int, row: Mapping[str, float | None]) -> None:
        """Logs the step, unless it is there from before a resume."""
        if step >= self._first:
            self._run.log(dict(row), step=step)

    def flush(self) -> None:
        """Does nothing: wandb sends in the background."""

    def close(self) -> None:
        """Finishes the run there."""
        self._run.finish()


class Sinks:
    """All sinks of a run; none of them can end it."""

    def __init__(self, makers: Mapping[str, Callable[[], Sink]]) -> None:
        """Opens the sinks. Args: their constructors, by the name for a warning."""
        self._open: dict[str, Sink] = {}
        for name, make in makers.items():
            if sink := self._guarded(name, make):
                self._open[name] = sink

    def write(self, rows: Iterable[Mapping[str, Any]], prefix: str = "") -> None:
        """Shows rows of a record, each with its `step`; names get the prefix."""
        kept = [(row["step"], _finite(row, prefix)) for row in rows]
        for name, sink in list(self._open.items()):

            def show(sink: Sink = sink) -> bool:
                for step, row in kept:
                    sink.write(step, row)
                sink.flush()
                return True

            if not self._guarded(name, show):
                del self._open[name]
                self._guarded("", sink.close)

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *error: object) -> None:
        while self._open:
            name, sink = self._open.popitem()
            self._guarded(name, sink.close)

    @staticmethod
    def _guarded(name: str, do: Callable[[], Any]) -> Any:
        """Returns the result, or None with a warning (if named) on failure."""
        try:
            return do()
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            if name:
                print(
                    f"warning: {name} is off, {text}; the record is whole",
                    file=sys.stderr,
                    flush=True,
                )
        return None


def open_sinks(
    options: RunOptions, config: dict[str, Any], folder: Path, step: int
) -> Sinks:
    """Opens the sinks that a run asks for, after some outer steps.

    Raises:
        InputError: if the package of one is not installed.
    """
    makers: dict[str, Callable[[], Sink]] = {}
    if options.tensorboard:
        _require("tensorboardX", "--run.tensorboard")
        makers["TensorBoard"] = lambda: TensorBoard(folder / TENSORBOARD, step)
    if (project := options.wandb) is not None:
        _require("wandb", "--run.wandb")
        makers["Weights & Biases"] = lambda: WeightsAndBiases(folder, project, config)
    return Sinks(makers)


def _require(package: str, flag: str) -> None:
    try:
        with _torch_hidden():
            importlib.import_module(package)
    except ImportError:
        raise InputError(
            f"{flag} needs the package {package}, which is not installed: "
            f"pip install '{_PACKAGES[package]}'"
        ) from None


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """Makes imports of torch fail, unless it is loaded already.

    tensorboardX and wandb import it if they can, which takes seconds and loads a second
    set of CUDA libraries.
    """
    if "torch" in sys.modules:
        yield
        return
    hidden: Any = None
    sys.modules["torch"] = hidden
    try:
        yield
    finally:
        del sys.modules["torch"]


def _finite(row: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
    return {
        prefix + name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
