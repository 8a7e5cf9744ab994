"""From a tree of arrays to an optimizer: which class it is of, its sizes, its θ.

No such file says what it holds. The class is seen by a tensor that only it has, its
sizes by the shapes of its tensors; everything else about the optimizer is an argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lopt.interchange import msgpack, tables
from lopt.interchange.tables import Table
from lopt.release import weights
from lopt.release.artifact import Artifact
from lopt.release.registry import AnyLearned
from lopt.release.weights import Shapes, Tensors

PLACES: tuple[tuple[str, ...], ...] = (
    (),
    ("params",),
    ("gradient_learner_state", "theta_opt_state", "params"),
)
"""Where θ may stand in a file: θ alone, a checkpoint's parameters, or its whole state;
Celo is meta-trained by learned_optimization and keeps its files alike."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A class of another library, and ours that is the same rule."""

    name: str
    """Of the class there."""
    mark: str
    """A tensor by which it is known; the first format whose mark is there is taken."""
    ours: type
    """Our class."""
    configure: Callable[[Tensors, Mapping[str, Any]], AnyLearned]
    """Our optimizer from the shapes of their tensors and from fields."""
    table: Callable[[Any], Table]
    """Names of the tensors of an optimizer of ours."""
    unused: Callable[[Any], Shapes] = lambda optimizer: {}
    """Shapes of tensors that must be there and that nothing reads."""


def load(
    path: str | Path,
    library: str,
    formats: Sequence[Format],
    fields: Mapping[str, Any],
) -> Artifact:
    """An optimizer from a file in flax's msgpack form.

    Args:
        path: the file.
        library: whose it is, for the provenance.
        formats: classes that it may hold.
        fields: of our optimizer, beside the sizes that the file tells.

    Raises:
        ValueError: in one line, if the file cannot be read, holds something else than
            arrays, or holds no θ that is known; naming the tensor or field at fault.
    """
    tensors, kind = _find(msgpack.read_tree(path), formats, path)
    artifact = from_tensors(tensors, kind, fields, path)
    imported = {"format": library, "class": kind.name, "from": Path(path).name}
    return dataclasses.replace(artifact, provenance={"imported": imported})


def from_tensors(
    tensors: Tensors, kind: Format, fields: Mapping[str, Any], where: object
) -> Artifact:
    """An optimizer from tensors by their names in another library.

    Raises:
        ValueError: naming the tensor that is missing, unknown or wrong, or the field.
    """
    try:
        optimizer = kind.configure(tensors, fields)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{where} is no theta of a {kind.name}: {what}") from None
    shapes = weights.expected_shapes(optimizer)
    table, unused = kind.table(optimizer), kind.unused(optimizer)
    theta = tables.to_theta(tensors, table, shapes, where, unused)
    return Artifact(optimizer, theta)


def to_tensors(artifact: Artifact, formats: Sequence[Format]) -> tuple[Tensors, Format]:
    """θ by its names in another library, and the class that it is of there.

    Raises:
        ValueError: if no class there is the same rule.
    """
    theta = weights.check_theta(artifact.optimizer, artifact.theta)
    for kind in formats:
        if isinstance(artifact.optimizer, kind.ours):
            table = kind.table(artifact.optimizer)
            unused = kind.unused(artifact.optimizer)
            return tables.from_theta(theta, table, unused), kind
    name = type(artifact.optimizer).__name__
    raise ValueError(f"there is no class there for a {name}")


def count(tensors: Tensors, pattern: str) -> int:
    """How many tensors `pattern` names with 0, 1, ... in it."""
    number = 0
    while pattern.format(number) in tensors:
        number += 1
    return number


def _find(
    tree: dict[str, Any],
    formats: Sequence[Format],
    where: object,
) -> tuple[Tensors, Format]:
    """θ and its class, wherever in the tree it stands."""
    for place in PLACES:
        node: Any = tree
        for key in place:
            node = node.get(key) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            continue
        names = _names(node)
        for kind in formats:
            if kind.mark in names:
                return msgpack.arrays(node, where), kind
    known = ", ".join(kind.name for kind in formats)
    raise ValueError(f"{where} holds no theta of a class that is known: {known}")


def _names(tree: Mapping[Any, Any], prefix: str = "") -> set[str]:
    """Paths of the leaves; never fails, whatever the tree holds."""
    names = set()
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        names |= _names(value, path) if isinstance(value, Mapping) else {path}
    return names
