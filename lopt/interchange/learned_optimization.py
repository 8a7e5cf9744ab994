"""θ of google/learned_optimization: checkpoints and files of `save_state`.

Both are trees in flax's msgpack form. A checkpoint `params_N` holds θ under `params`; a
checkpoint `checkpoint_N` holds it in the state of the outer optimizer; `save_state`
writes θ itself. Which class θ belongs to is seen by its names, its sizes by its shapes;
scales of the step, which no file holds, are arguments.

References:
    google/learned_optimization at 32186aa, `checkpoints.py` and `outer_train.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lopt import weights
from lopt.artifact import Artifact
from lopt.interchange import msgpack, tables
from lopt.interchange.tables import Table
from lopt.registry import AnyLearned
from lopt.small_fc import SmallFC
from lopt.weights import Tensors

_PLACES = (
    (),
    ("params",),
    ("gradient_learner_state", "theta_opt_state", "params"),
)
"""Where θ may stand in a file."""


@dataclasses.dataclass(frozen=True)
class Format:
    """One class there, and ours that is the same rule."""

    name: str
    """Of the class there."""
    mark: str
    """A name of a tensor that only this class has."""
    configure: Callable[[Tensors, Mapping[str, Any]], AnyLearned]
    """Our optimizer by the sizes of their tensors, and fields."""
    table: Callable[[Any], Table]
    """Names of its tensors."""


def _count(tensors: Tensors, pattern: str) -> int:
    """How many tensors `pattern` names with 0, 1, ... in it."""
    count = 0
    while pattern.format(count) in tensors:
        count += 1
    return count


def _small_fc(tensors: Tensors, fields: Mapping[str, Any]) -> SmallFC:
    return SmallFC(
        hidden_size=tensors["nn/~/w0"].shape[-1],
        hidden_layers=_count(tensors, "nn/~/w{}") - 1,
        **fields,
    )


def small_fc_table(optimizer: SmallFC) -> Table:
    """Names of `AdafacMLPLOpt`."""
    table = {
        "momentum_offsets": tables.same("momentum_decays"),
        "second_moment_offsets": tables.same("rms_decays"),
        "factored_offsets": tables.same("adafactor_decays"),
    }
    for i in range(optimizer.hidden_layers + 1):
        table |= tables.layer(f"layer_{i}", f"nn/~/w{i}", f"nn/~/b{i}")
    return table


FORMATS: tuple[Format, ...] = (
    Format("AdafacMLPLOpt", "nn/~/w0", _small_fc, small_fc_table),
)
"""The classes that can be read."""


def load(path: str | Path, **fields: Any) -> Artifact:
    """An optimizer from a checkpoint or a file of `save_state`.

    Args:
        path: the file.
        fields: of our optimizer, beside the sizes that the file tells.

    Raises:
        ValueError: in one line, if the file cannot be read, holds something else than
            arrays, or holds no θ that is known.
    """
    tree = msgpack.read_tree(path)
    tensors, kind = _find(tree, path)
    return from_tensors(tensors, kind, path, **fields)


def from_tensors(
    tensors: Tensors, kind: Format, where: object, **fields: Any
) -> Artifact:
    """An optimizer from tensors by their names there.

    Raises:
        ValueError: naming the tensor that is missing, unknown or wrong, or the field.
    """
    try:
        optimizer = kind.configure(tensors, fields)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is no theta of a {kind.name}: {error}") from None
    shapes = weights.expected_shapes(optimizer)
    theta = tables.to_theta(tensors, kind.table(optimizer), shapes, where)
    imported = {"format": "learned_optimization", "class": kind.name}
    if isinstance(where, str | Path):
        imported["from"] = Path(where).name
    return Artifact(optimizer, theta, provenance={"imported": imported})


def format_of(tensors: Tensors) -> Format | None:
    """The class whose mark is among the tensors."""
    return next((kind for kind in FORMATS if kind.mark in tensors), None)


def _find(tree: dict[str, Any], where: object) -> tuple[Tensors, Format]:
    """θ and its class, wherever in the tree it stands."""
    for place in _PLACES:
        node: Any = tree
        for key in place:
            node = node.get(key) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            continue
        for kind in FORMATS:
            if _has(node, kind.mark):
                return msgpack.arrays(node, where), kind
    raise ValueError(
        f"{where} holds no theta of a class that is known: "
        f"{', '.join(kind.name for kind in FORMATS)}"
    )


def _has(tree: Mapping[str, Any], name: str) -> bool:
    return name in weights.flatten(tree)
