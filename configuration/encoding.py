"""Frozen dataclasses as JSON values and back.

Plain nested objects: dataclasses by field, enums by name, tuples as lists, infinities
as "inf" (JSON has no number for them). Classes that a reader may choose among are
*kinds*: their objects say `kind`, the name of the class, and a reader knows no other.
The reader is strict: an unknown, a missing or a wrong field is an error that names it,
and what a class itself refuses is passed on.

A field that is added to a class whose objects are already stored says which value their
objects have, in its metadata:

    axes: str = dataclasses.field(default="layer", metadata={ABSENT: "tensor"})

The field is written only where it has another value, so objects that do not use it
are encoded as they were before: their files, digests and comparisons stay the same.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Kinds = Mapping[str, type]

ABSENT = "absent"
"""Key of a field's metadata: the value of the field in JSON that lacks it."""


def kinds_of(*classes: type) -> dict[str, type]:
    """The classes by their names, which must differ."""
    named = {kind.__name__: kind for kind in classes}
    if len(named) != len(set(classes)):
        raise ValueError(
            f"two of {[kind.__qualname__ for kind in classes]} share a name"
        )
    return named


def encode(value: Any, kinds: Kinds) -> Any:
    """A dataclass, or what its fields hold, as JSON values.

    Raises:
        ValueError: if it holds something that JSON cannot, as a function.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: encode(getattr(value, field.name), kinds)
            for field in dataclasses.fields(value)
            if not is_absent(field, getattr(value, field.name))
        }
        name = type(value).__name__
        return {"kind": name, **fields} if kinds.get(name) is type(value) else fields
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [encode(item, kinds) for item in value]
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{value} is no number of JSON")
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{value!r} of type {type(value).__name__} is no value of JSON")


def is_absent(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field with this value is left out of JSON (see `ABSENT`)."""
    return ABSENT in field.metadata and value == field.metadata[ABSENT]


def decode(kind: type[T], data: Any, where: str, kinds: Kinds) -> T:
    """Rebuilds a dataclass of a known class from JSON values.

    Args:
        kind: the class.
        data: what `encode` made of it; its own `kind` may be left out.
        where: a name for the error messages.
        kinds: classes that fields of several or of abstract types may hold.

    Raises:
        ValueError: naming the field that is unknown, missing or of a wrong type.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object with fields, not {data!r}")
    if kinds.get(kind.__name__) is kind and data.get("kind") == kind.__name__:
        data = {name: value for name, value in data.items() if name != "kind"}
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    if unknown := sorted(data.keys() - fields.keys()):
        raise ValueError(f"{where}.{unknown[0]} is not a field of {kind.__name__}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], f"{where}.{name}", kinds)
        elif ABSENT in field.metadata:
            values[name] = field.metadata[ABSENT]
        else:
            raise ValueError(f"{where}.{name} is missing")
    return kind(**values)


def decode_kind(data: Any, where: str, kinds: Kinds) -> Any:
    """Rebuilds a dataclass that says itself which of the known classes it is.

    Raises:
        ValueError: as `decode`, or if `kind` is missing or unknown.
    """
    if not isinstance(data, dict) or "kind" not in data:
        raise ValueError(f"{where} must be an object with a 'kind', not {_shown(data)}")
    name = data["kind"]
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(
            f"{where}.kind = {name!r} is not known; known are {', '.join(kinds)}"
        )
    fields = {key: value for key, value in data.items() if key != "kind"}
    return decode(kinds[name], fields, where, kinds)


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _decode(hint: Any, data: Any, where: str, kinds: Kinds) -> Any:
    if isinstance(data, dict) and "kind" in data:
        value = decode_kind(data, where, kinds)
        if not _fits(value, hint):
            raise ValueError(f"{where}.kind = {data['kind']!r} must be {_named(hint)}")
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(arguments, data, where, kinds)
    if origin is typing.Literal:
        if data not in arguments or type(data) not in map(type, arguments):
            raise ValueError(f"{where} = {data!r} must be one of {arguments}")
        return data
    if origin is tuple:
        return _decode_tuple(arguments, data, where, kinds)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), data, where, kinds)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if not isinstance(data, str) or data not in hint.__members__:
            raise ValueError(f"{where} = {data!r} must be in {[*hint.__members__]}")
        return hint[data]
    if inspect.isabstract(hint) or getattr(hint, "_is_protocol", False):
        return decode_kind(data, where, kinds)
    return _decode_plain(hint, data, where)


def _decode_union(
    arguments: tuple[Any, ...], data: Any, where: str, kinds: Kinds
) -> Any:
    """One of several types: plain ones by what the data is, others by their kind."""
    if data is None and type(None) in arguments:
        return None
    inner = [a for a in arguments if a is not type(None)]
    if len(inner) == 1:
        return _decode(inner[0], data, where, kinds)
    for candidate in inner:
        if candidate in (bool, int, float, str) and type(data) is candidate:
            return data
        if typing.get_origin(candidate) is typing.Literal and isinstance(data, str):
            return _decode(candidate, data, where, kinds)
    return decode_kind(data, where, kinds)


def _decode_tuple(
    arguments: tuple[Any, ...], data: Any, where: str, kinds: Kinds
) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise ValueError(f"{where} = {_shown(data)} must be a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(data)
    if len(arguments) != len(data):
        raise ValueError(f"{where} = {_shown(data)} must have {len(arguments)} entries")
    pairs = zip(arguments, data, strict=True)
    return tuple(_decode(hint, item, where, kinds) for hint, item in pairs)


def _decode_plain(hint: Any, data: Any, where: str) -> Any:
    if hint is Path and isinstance(data, str):
        return Path(data)
    if hint is float and data in ("inf", "-inf"):
        return float(data)
    if hint is float and type(data) is int:
        try:
            return float(data)
        except OverflowError:
            raise ValueError(f"{where} = {_shown(data)} is no float") from None
    if hint is not Any and type(data) is not hint:
        raise ValueError(f"{where} = {_shown(data)} must be of type {_named(hint)}")
    return data


def _fits(value: Any, hint: Any) -> bool:
    """Whether a field with this annotation may hold the value."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, argument) for argument in typing.get_args(hint))
    if getattr(hint, "_is_protocol", False):
        return getattr(hint, "_is_runtime_protocol", False) and isinstance(value, hint)
    return hint is Any or (isinstance(hint, type) and isinstance(value, hint))


def _named(hint: Any) -> str:
    arguments = typing.get_args(hint)
    return " or ".join(
        getattr(hint, "__name__", str(hint)) for hint in arguments or [hint]
    )
