"""Frozen dataclasses that check the types of their fields.

Python checks no annotation. A text where a number belongs fails deep inside a formula,
and a NaN, which every comparison lets pass, fails never. `@configuration` declares a
frozen dataclass that refuses such values when it is made:

    @configuration
    class SGD:
        learning_rate: float = 0.1

    SGD("fast")  # ValueError: learning_rate = 'fast' must be a number

`__post_init__` then only checks what a type cannot say. One walk over annotations,
`checked`, serves construction, arguments of functions and JSON
(`configuration.encoding`).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np

T = TypeVar("T")
Read = Callable[[str, Any, Any], Any]
"""`read(name, value, hint)`: a value of another notation as this type writes it."""

OPEN = object()
"""Mark of fields that take any object in Python, but only the type in JSON."""
NAN = object()
"""Mark of numbers that may be NaN."""
Measured = Annotated[float, NAN]
"""A measured number, NaN where there is none."""

ABSENT = "absent"
"""Key of a field's metadata: the field's value where stored JSON lacks it."""

LARGEST_INTEGER = 2**63
"""Bound on whole numbers, as arrays have it."""


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def configuration(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass that checks the types of its fields.

    Fields are checked before the class's own `__post_init__`. Types that say nothing
    about a value at hand (`Any`, protocols that are not runtime-checkable) accept every
    value, and so do fields that are marked `OPEN`.

    NumPy's numbers become Python's, and whole numbers become floats where the type is
    float, so equal configurations are encoded alike.
    """
    own = getattr(cls, "__post_init__", None)

    def check(self: Any) -> None:
        for name, hint in field_types(type(self)).items():
            value = getattr(self, name)
            fit = checked(name, value, hint)
            if fit is not value:
                object.__setattr__(self, name, fit)
        if own is not None:
            own(self)

    setattr(cls, "__post_init__", check)  # noqa: B010
    return dataclasses.dataclass(frozen=True)(cls)


def later(default: T, absent: Any = ...) -> T:
    """Declares a field that was added to a class whose objects are already stored.

    Args:
        default: value of new objects.
        absent: value of objects stored without the field, by default `default`; it is
            left out of JSON.
    """
    absent = default if absent is ... else absent
    return dataclasses.field(default=default, metadata={ABSENT: absent})


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Returns the annotations of a dataclass's fields, as far as they resolve."""
    for base in cls.__mro__:
        try:
            hints = typing.get_type_hints(base, include_extras=True)
        except NameError:
            # A class inside a function may not resolve where its bases do.
            continue
        fields = dataclasses.fields(typing.cast(Any, cls))
        return {
            field.name: hints[field.name] for field in fields if field.name in hints
        }
    return {}


def checked(name: str, value: Any, hint: Any, read: Read | None = None) -> Any:
    """Returns the value as a field or an argument of this type holds it.

    Args:
        name: what the value is for, in messages.
        value: the value.
        hint: the annotation.
        read: converts the value and its parts, if they are of another notation.

    Raises:
        ValueError: in one line with name, value and what would be right.
    """
    fit = _fit(name, value, hint, read)
    if fit is not _UNFIT:
        return fit
    hint, _ = unmarked(hint)
    if read is not None:
        value = read(name, value, hint)
    # Name the first entry of a tuple that does not fit.
    items = entry_types(hint, value)
    if items is not None:
        for i, (item, inner) in enumerate(zip(value, items, strict=True)):
            checked(f"{name}[{i}]", item, inner, read)
    if hint is int and type(value) is int:
        raise ValueError(f"{name} = {shown(value)} must lie within ±2⁶³")
    raise ValueError(f"{name} = {shown(value)} must be {_described(hint)}")


def encodable(name: str, text: str) -> str:
    r"""Returns a text that a file can hold.

    Raises:
        ValueError: if it has a lone surrogate, as JSON's "\ud800" or a name on the
            command line that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} = {shown(text)} must be Unicode text, without lone surrogates "
            f"such as {text[error.start]!a}"
        ) from None
    return text


def escaped(text: str) -> str:
    """Returns a text that `encodable` accepts; lone surrogates become escapes.

    For paths and command lines, whose bytes need not be UTF-8.
    """
    return text.encode(errors="backslashreplace").decode()


def unmarked(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Splits `Annotated[X, ...]` into X and its marks."""
    if typing.get_origin(hint) is not Annotated:
        return hint, ()
    return hint.__origin__, hint.__metadata__


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union; of any other type the type alone."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def shown(value: Any) -> str:
    """Returns the value's repr in one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def entry_types(hint: Any, value: Any) -> tuple[Any, ...] | None:
    """Returns annotations of a tuple's entries; None if the value does not match."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple or not isinstance(value, tuple):
        return None
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return (arguments[0],) * len(value)
    return arguments if len(arguments) == len(value) else None


_UNFIT: Any = object()


def _fit(name: str, value: Any, hint: Any, read: Read | None) -> Any:
    """Returns the value as the annotation wants it, or `_UNFIT`."""
    hint, marks = unmarked(hint)
    if read is not None:
        value = read(name, value, hint)
    elif OPEN in marks:
        return value
    union = alternatives(hint)
    if len(union) > 1:
        fits = [_fit(name, value, inner, read) for inner in union]
        fits = [fit for fit in fits if fit is not _UNFIT]
        # A whole number stays one where it may: `int | float` keeps 1 as it is.
        same = [fit for fit in fits if type(fit) is type(value)]
        return (*same, *fits, _UNFIT)[0]
    if hint in (float, int, bool):
        return _number(value, hint, nan=NAN in marks)
    if hint is str and isinstance(value, str):
        return encodable(name, value)
    items = entry_types(hint, value)
    if items is not None:
        # Shortcut for curves, which have thousands of entries.
        floats = {unmarked(inner)[0] for inner in set(items)} == {float}
        if floats and all(type(x) is float and not math.isnan(x) for x in value):
            return value
        pairs = zip(value, items, strict=True)
        fits = [
            _fit(f"{name}[{i}]", item, inner, read)
            for i, (item, inner) in enumerate(pairs)
        ]
        if any(fit is _UNFIT for fit in fits):
            return _UNFIT
        same = all(fit is item for fit, item in zip(fits, value, strict=True))
        return value if same else tuple(fits)
    return value if _is_of(value, hint, strict=read is not None) else _UNFIT


def _number(value: Any, kind: type, *, nan: bool) -> Any:
    """Returns a number, Python's or NumPy's, as this kind of number, or `_UNFIT`."""
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
    if kind is int or not isinstance(value, float):
        return _UNFIT
    return _UNFIT if math.isnan(value) and not nan else value


def _is_of(value: Any, hint: Any, *, strict: bool) -> bool:
    """Returns whether a value that is neither number nor tuple is of this type.

    Args:
        value: the value.
        hint: the annotation.
        strict: refuses values of types that cannot be asked.
    """
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
    if kind is Any:
        return True
    if not isinstance(kind, type):
        return not strict
    if getattr(kind, "_is_protocol", False):
        # A class has all methods of its instances.
        if isinstance(value, type):
            return False
        if not getattr(kind, "_is_runtime_protocol", False):
            return not strict
    return isinstance(value, kind)


_PLAIN = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "a text",
    Path: "a pathlib.Path",
    types.NoneType: "None",
}


def _described(hint: Any) -> str:
    """Describes the type as the end of "... must be"."""
    hint, _ = unmarked(hint)
    arguments = typing.get_args(hint)
    union = alternatives(hint)
    if len(union) > 1:
        words = [_described(inner) for inner in union if not is_class(inner)]
        if classes := [inner.__name__ for inner in union if is_class(inner)]:
            words.append(f"of type {', '.join(classes)}")
        return " or ".join(words)
    origin = typing.get_origin(hint)
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


def is_class(hint: Any) -> bool:
    """Returns whether it is a class other than a number, text, path, tuple or enum."""
    plain = hint in _PLAIN or typing.get_origin(hint) is not None
    return isinstance(hint, type) and not plain and not issubclass(hint, enum.Enum)
