"""Base class of sources of data, for tables, caches and cost estimates."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import jax

from configuration import identity


class Source(abc.ABC):
    """A description of data: a frozen dataclass that loads it.

    The defaults are those of data that is made, or that every installation has.
    """

    @abc.abstractmethod
    def load(self) -> Any:
        """Returns the dataset: a pytree of device arrays, all four splits inside."""

    @property
    def label(self) -> str:
        """Name in tables."""
        return type(self).__name__

    def missing(self) -> str | None:
        """Returns, in one line, why the data is not on this machine; None if it is.

        Shards are not opened: whether they are whole shows when the data is loaded.
        """
        return None

    def content(self) -> str:
        """Returns the sha256 of what is loaded: of its files, or of all arrays.

        Raises:
            ValueError: if the data is not on this machine.
        """
        return identity.of_arrays(self.load())

    def identified_by(self) -> Mapping[str, Any]:
        """Returns the fields, and the content: one name may stand for several."""
        return identity.own_fields(self) | {"content": self.content()}

    def num_bytes(self) -> int | None:
        """Returns the bytes of the dataset; None if only reading it would tell.

        Raises:
            ValueError: if the data is not on this machine.
        """
        return tree_bytes(self.load())


def tree_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays, or shapes of arrays, of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
