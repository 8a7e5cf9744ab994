"""Rows of an evaluation, and files of rows.

A row is one run of one optimizer in one cell with one seed, with what a table needs to
know of the task. A file has one JSON object per line, each with its schema version, and
is replaced as a whole. Reading is strict: other versions and fields are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configuration.encoding import decode, encode
from configuration.fields import Measured, later
from configuration.files import open_file, write_text

SCHEMA_VERSION = 3
_LONGEST_LINE = 64 * 2**20  # bytes; a curve of millions of steps


@dataclasses.dataclass(frozen=True)
class EvalRow:
    """One run of one optimizer on a task; losses in the task's unit."""

    optimizer: str
    cell: str
    axis: str
    """The one thing that the cell varies (see `tasks.suites.Cell`)."""
    task: str
    """Class of the task: ImageClassification, LanguageModelling, ..."""
    family: str
    """Class of the model; for a task without one, of the task."""
    widths: tuple[int, ...]
    """Widths of the layers or blocks; empty where nothing has a width."""
    depth: int | None
    """Hidden layers or blocks; None where there are none."""
    base_width: int | None
    parametrization: str
    """ADAM_LIKE (μP) or STANDARD."""
    batch_size: int | None
    """Examples per batch; None where there are no examples."""
    dataset: str
    """Name of the data."""
    resolution: str
    """Size of one input: pixels, tokens, coordinates."""
    unit: str
    """Unit of the losses, the task's own: nats, squared deviations, ..."""
    loss_at_chance: Measured
    """Loss that normalizes losses to compare them between tasks."""
    steps: int
    """Inner steps (`H`)."""
    seed: int
    curve: tuple[Measured, ...]
    """`[H]` training-batch loss before each update, not capped."""
    mean_loss: Measured
    """Mean of the curve, each loss capped at 1.5 × the loss at chance."""
    final_loss: Measured
    """Mean of the last 20 losses, capped likewise."""
    valid_loss: Measured
    """Loss on the whole of outer_valid after the last step, as measured: not capped,
    and NaN or infinite where it was."""
    valid_accuracy: Measured
    """NaN where the task has none."""
    test_loss: Measured
    """Loss on the whole of test, likewise."""
    test_accuracy: Measured
    diverged: bool
    """Whether a training or held-out loss or a parameter was not finite, or the last
    training loss was at the cap."""
    capped_steps: int
    """Number of steps whose loss was capped."""
    seconds: Measured
    """Wall time of the cell's reported runs of this optimizer, which are vmapped, over
    their number; training and the final losses, without compilation."""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Learning rate, schedule and where they were tuned; or the learned optimizer."""
    readout_init: str = later("zero")
    """Start of the model's readouts."""


def write_rows(path: str | Path, rows: Iterable[EvalRow]) -> None:
    """Writes rows as JSON lines; the file is replaced as a whole."""
    lines = [_encode(row) for row in rows]
    write_text(path, "".join(line + "\n" for line in lines))


def read_rows(path: str | Path) -> list[EvalRow]:
    """Reads rows.

    Raises:
        ValueError: naming file and line that is not a row of this schema.
    """
    rows = []
    with open_file(path) as file:
        lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(_decode(line.decode()))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return rows


def by_cell(rows: Iterable[EvalRow]) -> dict[str, list[EvalRow]]:
    """Groups rows by cell, in the order in which cells occur."""
    cells: dict[str, list[EvalRow]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    return cells


def missing_runs(
    rows: Sequence[EvalRow], expected: Iterable[tuple[str, str, int]]
) -> list[tuple[str, str, int]]:
    """Returns the expected (cell, optimizer, seed) that have no row."""
    present = {(row.cell, row.optimizer, row.seed) for row in rows}
    return [run for run in expected if run not in present]


def _encode(row: EvalRow) -> str:
    content = {"schema_version": SCHEMA_VERSION} | encode(row, {}, nan=True)
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


def _decode(line: str) -> EvalRow:
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    version = content.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version = {version!r}; this version reads {SCHEMA_VERSION}"
        )
    return decode(EvalRow, content, "row", {})
