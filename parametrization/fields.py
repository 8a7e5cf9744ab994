"""Configurations: frozen dataclasses whose fields hold what their types say.

Python checks no annotation. Without a check a text where a number belongs is found
deep inside of a formula, or never: `stop_after = "5"`, a count of 1.5, a NaN that every
comparison lets pass. `configuration` declares a dataclass that refuses such a value
when it is made, in one line that names the field; what is left to `__post_init__` is
what a type cannot say.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

OPEN = object()
"""In `Annotated[X, OPEN]`: X is what can be written down; in Python more will do."""

LARGEST_INTEGER = 2**63
"""Whole numbers stay below, as those of arrays do."""


@typing.dataclass_transform(frozen_default=True)
def configuration(cls: type[T]) -> type[T]:
    """A frozen dataclass that checks the types of its fields.

    Before its own `__post_init__`, and with a ValueError whose one line says the field,
    its value and what would be right. Numbers are Python's own, so that they can be
    hashed, compared and written down; a whole number will do for a float, True will
    not, and NaN is no number. Tuples, unions, literals, enums and classes are followed;
    types that say nothing about a value at hand (`Any`, protocols that cannot be asked)
    are not checked, nor are fields whose annotation is marked `OPEN`.
    """
    own = getattr(cls, "__post_init__", None)

    def check(self: Any) -> None:
        for name, hint in _hints(cls).items():
            if problem := _problem(name, getattr(self, name), hint):
                raise ValueError(problem)
        if own is not None:
            own(self)

    setattr(cls, "__post_init__", check)  # noqa: B010
    return dataclasses.dataclass(frozen=True)(cls)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    fields = dataclasses.fields(typing.cast(Any, cls))
    plain = typing.get_type_hints(cls)
    marked = typing.get_type_hints(cls, include_extras=True)
    return {
        field.name: plain[field.name]
        for field in fields
        if OPEN not in getattr(marked[field.name], "__metadata__", ())
    }


def _problem(name: str, value: Any, hint: Any) -> str | None:
    """What is wrong with a value, in one line; None if nothing is."""
    if _fits(value, hint):
        return None
    arguments = _items(hint, value)
    if arguments is not None:  # a tuple: which of its entries is it?
        for i, (item, inner) in enumerate(zip(value, arguments, strict=True)):
            if problem := _problem(f"{name}[{i}]", item, inner):
                return problem
    if hint is int and type(value) is int:
        return f"{name} = {_shown(value)} must lie within ±2⁶³"
    return f"{name} = {_shown(value)} must be {_described(hint)}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a field with this annotation may hold the value."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(a) and value == a for a in arguments)
    if hint is None or hint is types.NoneType:
        return value is None
    if hint is float:
        return _is_number(value)
    if hint is int:
        return type(value) is int and abs(value) < LARGEST_INTEGER
    if hint is bool:
        return type(value) is bool
    if origin is tuple or hint is tuple:
        items = _items(hint, value)
        if items is None:
            return isinstance(value, tuple) and hint is tuple
        return all(map(_fits, value, items))
    if origin is collections.abc.Callable:
        return callable(value)
    kind = origin or hint
    if kind is Any or not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        asked = getattr(kind, "_is_runtime_protocol", False)
        return not asked or isinstance(value, kind)
    return isinstance(value, kind)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return not math.isnan(float(value))
    except OverflowError:
        return False


def _items(hint: Any, value: Any) -> tuple[Any, ...] | None:
    """Annotations of a tuple's entries, if it is a tuple and has as many."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple or not isinstance(value, tuple):
        return None
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return (arguments[0],) * len(value)
    return arguments if len(arguments) == len(value) else None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _described(hint: Any) -> str:
    """What would be right, as the end of a sentence."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        words = [_described(a) for a in arguments if not _is_class(a)]
        if classes := [a.__name__ for a in arguments if _is_class(a)]:
            words.append(f"of type {', '.join(classes)}")
        return " or ".join(words)
    if origin is typing.Literal:
        if len(arguments) == 1:
            return repr(arguments[0])
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a tuple, each {_described(arguments[0])}"
        return f"a tuple of {len(arguments)}: {', '.join(map(_described, arguments))}"
    if origin is collections.abc.Callable:
        return "a function"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(hint.__members__)}"
    return _PLAIN.get(hint, f"of type {getattr(origin or hint, '__name__', hint)}")


_PLAIN = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "a text",
    Path: "a pathlib.Path",
    types.NoneType: "None",
}


def _is_class(hint: Any) -> bool:
    """Whether it is described by its name alone."""
    plain = hint in _PLAIN or typing.get_origin(hint) is not None
    return isinstance(hint, type) and not plain and not issubclass(hint, enum.Enum)
