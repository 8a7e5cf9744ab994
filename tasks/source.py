"""Base class of sources of data, for tables, caches and cost estimates."""

from __future__ import annotations

import abc
import dataclasses
import functools
import typing
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax

from configuration import identity

T = TypeVar("T")


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

    def state(self) -> Hashable:
        """Returns what differs once files were replaced, for caches of this process.

        Raises:
            ValueError: if the data is not on this machine.
        """
        names = (field.name for field in dataclasses.fields(typing.cast(Any, self)))
        return tuple(state_of(getattr(self, name)) for name in names)

    def num_bytes(self) -> int | None:
        """Returns the bytes of the dataset; None if only reading it would tell.

        Raises:
            ValueError: if the data is not on this machine.
        """
        return tree_bytes(self.load())


def state_of(value: Any) -> Hashable:
    """Returns the states of all sources in a task, a source or their parts."""
    if isinstance(value, Source):
        return value.state()
    if dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
        return tuple(state_of(getattr(value, name)) for name in names)
    return None


def kept(load: Callable[..., T]) -> Callable[..., T]:
    """Keeps the results of a function of tasks and sources while their files stay.

    As `functools.cache`, whose `cache_clear` it has; but another process may replace
    files of data.
    """

    @functools.cache
    def of_state(states: Hashable, *given: Any) -> T:
        del states  # part of the key
        return load(*given)

    @functools.wraps(load)
    def of(*given: Any) -> T:
        return of_state(tuple(map(state_of, given)), *given)

    of.cache_clear = of_state.cache_clear  # pyright: ignore[reportAttributeAccessIssue]
    return of


def tree_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays, or shapes of arrays, of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
