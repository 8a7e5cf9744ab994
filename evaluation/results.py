"""The record of one evaluation run, and files of such records.

One row is one optimizer in one cell with one seed; it says of its task what a table
needs, and nothing that only one kind of task has. A file has one JSON object per line,
each with its schema version, and is replaced as a whole: a reader never sees a part.
Reading is strict: an unknown version, a missing field or an unknown one is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configuration.encoding import decode, encode
from configuration.fields import Measured
from configuration.files import write_text

SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True)
class EvalRow:
    """One run of one optimizer on a task of any kind; losses in its unit."""

    optimizer: str
    cell: str
    axis: str
    """What the cell varies alone (see `tasks.suites.Cell`)."""
    task: str
    """Kind of the task: ImageClassification, LanguageModelling, ..."""
    family: str
    """Kind of the model; of a task without one, the task's."""
    widths: tuple[int, ...]
    """Of each layer or block; empty where nothing has a width."""
    depth: int | None
    """Hidden layers or blocks; None where there are none."""
    base_width: int | None
    parametrization: str
    """ADAM_LIKE (μP) or STANDARD."""
    batch_size: int | None
    """Examples a batch; None where there are no examples."""
    dataset: str
    """Name of the data."""
    resolution: str
    """Size of one input: pixels, tokens, coordinates."""
    unit: str
    """Of the losses: nats, nats per token, squared deviations, ..."""
    loss_at_chance: float
    """What losses are divided by to be compared between tasks."""
    steps: int
    """Inner steps (`H`)."""
    seed: int
    curve: tuple[Measured, ...]
    """`[H]` training-batch loss before each update, as it was: not capped."""
    mean_loss: Measured
    """Mean of the curve, each loss capped at 1.5 × the loss at chance."""
    final_loss: Measured
    """Mean of the last 20 losses, capped alike."""
    valid_loss: Measured
    valid_accuracy: Measured
    """NaN where the task has none."""
    test_loss: Measured
    test_accuracy: Measured
    diverged: bool
    """Something was not finite, or the last loss stood at the cap."""
    capped_steps: int
    """Steps whose loss counted as the cap."""
    seconds: float
    """Wall time of this run's share of its program, compilation excluded."""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Learning rate, schedule and where they were tuned, or the artifact's origin."""


def write_rows(path: str | Path, rows: Iterable[EvalRow]) -> None:
    """Writes rows as JSON lines, by a rename."""
    lines = [_encode(row) for row in rows]
    write_text(path, "".join(line + "\n" for line in lines))


def read_rows(path: str | Path) -> list[EvalRow]:
    """Reads rows.

    Raises:
        ValueError: naming file and line of what is not a row of this schema.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        try:
            rows.append(_decode(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return rows


def missing_runs(
    rows: Sequence[EvalRow], expected: Iterable[tuple[str, str, int]]
) -> list[tuple[str, str, int]]:
    """Which expected (cell, optimizer, seed) have no row; to be reported as missing."""
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
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ValueError(
            f"schema_version = {version!r}; this version reads {SCHEMA_VERSION}"
        )
    return decode(EvalRow, content, "row", {})
