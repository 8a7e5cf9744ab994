"""Optimizers from files that hold nothing but arrays.

The class follows from a tensor that only it has, its sizes from the shapes of the
tensors; all other fields of the optimizer are arguments.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configuration.fields import escaped
from lopt.interchange import msgpack, npz, tables
from lopt.interchange.tables import Table
from lopt.release import weights
from lopt.release.artifact import Artifact
from lopt.release.registry import AnyLearned
from lopt.release.weights import Shapes, Tensors

PLACES: tuple[tuple[str, ...], ...] = (
    (),
    ("params",),
    ("theta",),
    ("gradient_learner_state", "theta_opt_state", "params"),
)
"""Places of θ: the file itself, a checkpoint's parameters, an entry beside recorded
trajectories, or the outer optimizer's state. Celo is meta-trained by
learned_optimization and its files are alike."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A class of another library and our class of the same rule."""

    name: str
    """Name of the foreign class."""
    mark: str
    """A tensor that identifies it; the first format whose mark is found is taken."""
    ours: type
    """Our class."""
    configure: Callable[[Tensors, Mapping[str, Any]], AnyLearned]
    """Makes our optimizer from the foreign tensors' shapes and the given fields."""
    table: Callable[[Any], Table]
    """Makes the table of names for one of our optimizers."""
    unused: Callable[[Any], Shapes] = lambda optimizer: {}
    """Makes the shapes of foreign tensors that θ does not need."""


def load(
    path: str | Path,
    library: str,
    formats: Sequence[Format],
    fields: Mapping[str, Any],
) -> Artifact:
    """Reads an optimizer from a file in flax's msgpack form, or an npz.

    The paths of an npz's arrays are the same names, `a/b/c`, perhaps below `theta/`.

    Args:
        path: the file.
        library: name of the library, for the provenance.
        formats: classes that the file may hold.
        fields: fields of our optimizer other than the sizes.

    Raises:
        ValueError: in one line, naming the file and the tensor or field at fault.
    """
    of_numpy = Path(path).suffix == npz.SUFFIX
    tree = npz.read_tree(path) if of_numpy else msgpack.read_tree(path)
    tensors, kind = _find(tree, formats, path)
    artifact = from_tensors(tensors, kind, fields, path)
    imported = {"format": library, "class": kind.name, "from": escaped(Path(path).name)}
    return dataclasses.replace(artifact, provenance={"imported": imported})


def from_tensors(
    tensors: Tensors, kind: Format, fields: Mapping[str, Any], where: object
) -> Artifact:
    """Makes an optimizer from tensors by their foreign names.

    Raises:
        ValueError: naming the tensor or field that is missing, unknown or wrong.
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
    """Returns θ by its foreign names, and the format.

    Raises:
        ValueError: if no foreign class is the same rule.
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
    """Returns the number of tensors named by `pattern` with 0, 1, ... in it."""
    return next(i for i in itertools.count() if pattern.format(i) not in tensors)


def _find(
    tree: dict[str, Any],
    formats: Sequence[Format],
    where: object,
) -> tuple[Tensors, Format]:
    """Finds θ and its format in one of `PLACES`."""
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
    """Returns the paths of the leaves, whatever the tree holds."""
    names = set()
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        names |= _names(value, path) if isinstance(value, Mapping) else {path}
    return names
