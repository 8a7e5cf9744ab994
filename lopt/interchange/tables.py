"""Tables of the names that tensors of θ have in other libraries.

A table lists for every leaf of our θ the foreign tensors that it is made of. Their
shapes follow from those of our θ, so a file is checked before it is read, and one table
serves both directions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lopt.base import Theta
from lopt.per_parameter.features import VELO, Counts
from lopt.release import weights
from lopt.release.weights import Shapes, Tensors


@dataclasses.dataclass(frozen=True)
class Source:
    """Foreign tensors that one leaf of θ is made of."""

    names: tuple[str, ...]
    """One tensor, or several that are concatenated along the axis of inputs."""
    rows: tuple[int, ...] = ()
    """Inputs of each tensor, if there are several."""
    transposed: bool = False
    """Whether foreign matrices are `[out, in]`."""
    leading_one: bool = False
    """Whether foreign tensors have an additional first axis of size 1."""

    def shapes(self, ours: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Returns the shapes of the foreign tensors of a leaf of our shape."""
        shapes = [ours]
        if self.rows:
            if sum(self.rows) != ours[-2]:
                raise ValueError(f"{self.names}: {self.rows} rows, must be {ours[-2]}")
            shapes = [(*ours[:-2], rows, ours[-1]) for rows in self.rows]
        if self.transposed:
            shapes = [(*s[:-2], s[-1], s[-2]) for s in shapes]
        return [(1, *s) if self.leading_one else s for s in shapes]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Returns our leaf from the foreign tensors."""
        if self.leading_one:
            parts = [part[0] for part in parts]
        if self.transposed:
            parts = [part.swapaxes(-1, -2) for part in parts]
        return np.concatenate(parts, axis=-2) if self.rows else parts[0]

    def split(self, leaf: np.ndarray) -> list[np.ndarray]:
        """Returns the foreign tensors of our leaf."""
        ends = [*itertools.accumulate(self.rows)][:-1]
        parts = np.split(leaf, ends, axis=-2) if self.rows else [leaf]
        if self.transposed:
            parts = [part.swapaxes(-1, -2) for part in parts]
        parts = [part[None] if self.leading_one else part for part in parts]
        return [np.array(part, order="C") for part in parts]


Table = Mapping[str, Source]
"""Sources of the leaves of our θ, by path."""


def same(name: str, *, transposed: bool = False, leading_one: bool = False) -> Source:
    """Returns the source of a leaf that is one foreign tensor."""
    return Source((name,), transposed=transposed, leading_one=leading_one)


def layer(
    ours: str, kernel: str, bias: str, *, transposed: bool = False
) -> dict[str, Source]:
    """Returns the table of a dense layer, `ours/kernel` and `ours/bias`."""
    return {
        f"{ours}/kernel": same(kernel, transposed=transposed),
        f"{ours}/bias": same(bias),
    }


def linear_layers(ours: str, theirs: str, number: int) -> dict[str, Source]:
    """Returns the table of a haiku network's layers `theirs_i/w` and `theirs_i/b`."""
    table: dict[str, Source] = {}
    for i in range(number):
        table |= layer(f"{ours}layer_{i}", f"{theirs}_{i}/w", f"{theirs}_{i}/b")
    return table


def lstm_cell(ours: str, cell: str, state: str) -> dict[str, Source]:
    """Returns the table of a haiku LSTM cell and its initial state, there `[1, H]`."""
    return {
        **layer(ours, f"{cell}/w", f"{cell}/b"),
        f"{ours}/hidden": same(f"{state}/hidden", leading_one=True),
        f"{ours}/cell": same(f"{state}/cell", leading_one=True),
    }


def velo_rows(num_decays: int) -> tuple[int, ...]:
    """Returns the number of inputs of each of VeLO's features."""
    counts = Counts(num_decays, 1, num_decays)
    return tuple(len(feature.names(counts)) for feature in VELO.features)


def split_network(
    ours: str,
    theirs: str,
    number: int,
    num_decays: int,
    leading_one: bool = False,
) -> dict[str, Source]:
    """Returns the table of a network whose first kernel is split by VeLO's features.

    Its foreign tensors are `w0__0`, ..., `b0`, `w1`, `b1` and so on under `theirs`.
    """
    rows = velo_rows(num_decays)
    names = tuple(f"{theirs}/w0__{i}" for i in range(len(rows)))
    table = {
        f"{ours}layer_0/kernel": Source(names, rows),
        f"{ours}layer_0/bias": same(f"{theirs}/b0"),
    }
    for i in range(1, number):
        table |= layer(f"{ours}layer_{i}", f"{theirs}/w{i}", f"{theirs}/b{i}")
    return {
        path: dataclasses.replace(source, leading_one=leading_one)
        for path, source in table.items()
    }


def scheduler(bank: bool) -> dict[str, Source]:
    """Returns the table of VeLO's and Celo's scheduling LSTM in haiku."""
    names = {"exchange": "linear_1", "inputs": "linear_2", "step": "step_size"}
    names |= {"controls": "rnn_to_controls"} if bank else {}
    table = lstm_cell("scheduler/lstm", "rnn_params/rnn/linear", "lstm_init_state")
    for ours, name in names.items():
        kernel, bias = f"rnn_params/{name}/w", f"rnn_params/{name}/b"
        table |= layer(f"scheduler/{ours}", kernel, bias)
    return table


def unused_layer(optimizer: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the scheduler's layer whose output is not used."""
    inputs, size = optimizer.scheduler.num_inputs, optimizer.lstm_hidden_size
    return {"rnn_params/linear/w": (inputs, size), "rnn_params/linear/b": (size,)}


def foreign_shapes(
    table: Table, shapes: Shapes, unused: Shapes | None = None
) -> dict[str, tuple[int, ...]]:
    """Returns the foreign names and shapes of a θ (arguments as in `to_theta`)."""
    if table.keys() != shapes.keys():
        raise ValueError(
            f"the table names {sorted(table)}, but theta holds {sorted(shapes)}"
        )
    found = dict(unused or {})
    for path, source in table.items():
        found |= dict(zip(source.names, source.shapes(shapes[path]), strict=True))
    return found


def to_theta(
    tensors: Tensors,
    table: Table,
    shapes: Shapes,
    where: object,
    unused: Shapes | None = None,
) -> Theta:
    """Returns θ from the tensors of a foreign file.

    Args:
        tensors: by their foreign names.
        table: the names.
        shapes: of the leaves of our θ.
        where: the file, for messages.
        unused: shapes of foreign tensors that θ does not need.

    Raises:
        ValueError: naming the tensor that is missing, unknown or wrong.
    """
    weights.check(tensors, foreign_shapes(table, shapes, unused), where)
    leaves = {
        path: source.join([tensors[name] for name in source.names])
        for path, source in table.items()
    }
    return weights.as_theta(leaves)


def from_theta(theta: Tensors, table: Table, unused: Shapes | None = None) -> Tensors:
    """Inverts `to_theta`; unused tensors are zero.

    Args:
        theta: by the paths of its leaves, as `weights.check_theta` returns it.
        table: the names.
        unused: shapes of foreign tensors that θ does not need.
    """
    tensors = {n: np.zeros(shape, np.float32) for n, shape in (unused or {}).items()}
    for path, source in table.items():
        tensors |= dict(zip(source.names, source.split(theta[path]), strict=True))
    return tensors
