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

import numpy as np

T = TypeVar("T")

OPEN = object()
"""In `Annotated[X, OPEN]`: X is what can be written down; in Python more will do."""

LARGEST_INTEGER = 2**63
"""Whole numbers stay below, as those of arrays do."""


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def configuration(cls: type[T]) -> type[T]:
    """A frozen dataclass that checks the types of its fields.

    Before its own `__post_init__`, and with a ValueError whose one line says the field,
    its value and what would be right. Tuples, unions, literals, enums and classes are
    followed; types that say nothing about a value at hand (`Any`, protocols that cannot
    be asked) are not checked, nor are fields whose annotation is marked `OPEN`.

    Numbers become Python's own, whole ones floats where a float belongs: so
    configurations that are equal are written down alike. True is no number, and neither
    is NaN.
    """
    own = getattr(cls, "__post_init__", None)

    def check(self: Any) -> None:
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            fit = checked(name, value, hint)
            if fit is not value:
                object.__setattr__(self, name, fit)
        if own is not None:
            own(self)

    setattr(cls, "__post_init__", check)  # noqa: B010
    return dataclasses.dataclass(frozen=True)(cls)


def checked(name: str, value: Any, hint: Any) -> Any:
    """A value as a field or an argument of this type holds it.

    Raises:
        ValueError: in one line, naming what the value is for and what would be right.
    """
    fit = _fit(value, hint)
    if fit is not _UNFIT:
        return fit
    hints = _items(hint, value)
    if hints is not None:  # a tuple: which of its entries is it?
        for i, (item, inner) in enumerate(zip(value, hints, strict=True)):
            checked(f"{name}[{i}]", item, inner)
    if hint is int and type(value) is int:
        raise ValueError(f"{name} = {_shown(value)} must lie within ±2⁶³")
    raise ValueError(f"{name} = {_shown(value)} must be {_described(hint)}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of the fields that are checked."""
    for base in cls.__mro__:
        try:
            plain = typing.get_type_hints(base)
            marked = typing.get_type_hints(base, include_extras=True)
        except NameError:  # of a class inside a function: what it inherits is known
            continue
        return {
            field.name: plain[field.name]
            for field in dataclasses.fields(typing.cast(Any, cls))
            if field.name in plain
            and OPEN not in getattr(marked[field.name], "__metadata__", ())
        }
    return {}


_UNFIT: Any = object()


def _fit(value: Any, hint: Any) -> Any:
    """The value as this annotation wants it, or `_UNFIT`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        fits = (_fit(value, argument) for argument in arguments)
        fits = [fit for fit in fits if fit is not _UNFIT]
        # A whole number stays one where it may: 1 is no 1.0 in `int | float`.
        same = [fit for fit in fits if type(fit) is type(value)]
        return (*same, *fits, _UNFIT)[0]
    if hint in (float, int, bool):
        return _number(value, hint)
    items = _items(hint, value)
    if items is not None:
        fits = [_fit(item, inner) for item, inner in zip(value, items, strict=True)]
        if any(fit is _UNFIT for fit in fits):
            return _UNFIT
        same = all(fit is item for fit, item in zip(fits, value, strict=True))
        return value if same else tuple(fits)
    return value if _is_of(value, hint) else _UNFIT


def _number(value: Any, kind: type) -> Any:
    """A number, Python's or NumPy's, as this kind of number."""
    if isinstance(value, np.generic):
        value = value.item()
    if kind is bool or isinstance(value, bool):
        return value if type(value) is kind else _UNFIT
    if isinstance(value, int):
        try:
            fit = kind(value)
        except OverflowError:
            return _UNFIT
        return fit if kind is float or abs(fit) < LARGEST_INTEGER else _UNFIT
    if kind is int or not isinstance(value, float) or math.isnan(value):
        return _UNFIT
    return value


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value that is no number and no tuple is of this type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(type(value) is type(a) and value == a for a in arguments)
    if hint is None:
        return value is None
    if origin is tuple:
        return False
    if origin is collections.abc.Callable:
        return callable(value)
    kind = origin or hint
    if kind is Any or not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        asked = getattr(kind, "_is_runtime_protocol", False)
        # A class has all the methods of its instances.
        return not isinstance(value, type) and (not asked or isinstance(value, kind))
    return isinstance(value, kind)


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
