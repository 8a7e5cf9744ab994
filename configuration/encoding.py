"""Dataclasses as JSON values and back.

Objects are dataclasses by field, enums by name, tuples as lists, infinities as "inf"
(JSON has no number for them). Where a field may hold one of several classes, the object
says which as `kind`, and only *kinds* that the reader knows are made. The reader is
strict: an unknown, missing or wrong field is an error that names it.

    encode(SGD(0.3), kinds_of(SGD))  # {"kind": "SGD", "learning_rate": 0.3}

A field that is added to a class whose objects are already stored is declared with the
value that those have: `axes: str = later("layer", absent="tensor")`. It is encoded only
where it has another value, so files, digests and comparisons of objects that do not use
it stay the same.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from configuration.fields import (
    ABSENT,
    Read,
    alternatives,
    checked,
    field_types,
    is_class,
    shown,
    unmarked,
)

T = TypeVar("T")
Kinds = Mapping[str, type]

_NOT_FINITE = ("inf", "-inf", "nan")


def kinds_of(*classes: type) -> dict[str, type]:
    """Returns the classes by name, for `encode` and `decode`.

    Raises:
        ValueError: if two share a name.
    """
    named = {kind.__name__: kind for kind in classes}
    if len(named) != len(set(classes)):
        raise ValueError(
            f"two of {[kind.__qualname__ for kind in classes]} share a name"
        )
    return named


def is_kind(cls: type, kinds: Kinds) -> bool:
    """Returns whether objects of this class say their `kind`."""
    return kinds.get(cls.__name__) is cls


def encode(value: Any, kinds: Kinds, *, nan: bool = False, absent: bool = False) -> Any:
    """Returns a dataclass, or what its fields hold, as JSON values.

    Args:
        value: the dataclass.
        kinds: classes whose objects say their `kind`.
        nan: writes NaN as "nan", which fields of type `Measured` read back.
        absent: writes also the fields that are left out because they have the value of
            objects stored without them.

    Raises:
        ValueError: if it holds something that JSON cannot, such as a function, or an
            object of an unknown subclass of a kind, which would be read as the kind.
    """

    def head(cls: type) -> dict[str, str]:
        if is_kind(cls, kinds):
            return {"kind": cls.__name__}
        for base in cls.__mro__:
            if is_kind(base, kinds):
                raise ValueError(
                    f"{cls.__name__} is not registered and would be read back as "
                    f"{base.__name__}, which it derives from: register "
                    f"{cls.__name__}, or use {base.__name__}"
                )
        return {}

    return _encode(value, head, nan, absent)


def _encode(
    value: Any,
    head: Callable[[type], dict[str, str]],
    nan: bool,
    absent: bool = False,
) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if absent or not is_absent(field, getattr(value, field.name))
        }
        return head(type(value)) | _encode(fields, head, nan, absent)
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _encode(item, head, nan, absent) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item, head, nan, absent) for item in value]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value) and not nan:
            raise ValueError(f"{value} is no number of JSON")
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{value!r} of type {type(value).__name__} is no value of JSON")


def is_absent(field: dataclasses.Field[Any], value: Any) -> bool:
    """Returns whether JSON leaves out a field that has this value."""
    return ABSENT in field.metadata and value == field.metadata[ABSENT]


def decode(kind: type[T], data: Any, where: str, kinds: Kinds) -> T:
    """Rebuilds a dataclass of a known class from JSON values.

    Args:
        kind: the class.
        data: what `encode` made of it; its own `kind` may be left out.
        where: name of the object in messages.
        kinds: classes that fields of several or of abstract types may hold.

    Raises:
        ValueError: naming the field that is unknown, missing or of a wrong type, or as
            the class itself refuses its fields.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object with fields, not {shown(data)}")
    if is_kind(kind, kinds) and data.get("kind") == kind.__name__:
        data = {name: value for name, value in data.items() if name != "kind"}
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    if unknown := sorted(data.keys() - fields.keys()):
        raise ValueError(f"{where}.{unknown[0]} is not a field of {kind.__name__}")
    hints, read, values = field_types(kind), _reader(kinds), {}
    for name, field in fields.items():
        if name in data:
            hint = hints.get(name, Any)
            values[name] = checked(f"{where}.{name}", data[name], hint, read)
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
        raise ValueError(f"{where} must be an object with a 'kind', not {shown(data)}")
    name = data["kind"]
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(
            f"{where}.kind = {shown(name)} is not known; known are {', '.join(kinds)}"
        )
    return decode(kinds[name], data, where, kinds)


def _reader(kinds: Kinds) -> Read:
    """Reads one JSON value as an annotation wants it; what does not fit stays."""

    def read(name: str, value: Any, hint: Any) -> Any:
        if isinstance(value, dict):
            return _read_object(name, value, hint, kinds)
        if isinstance(value, list) and typing.get_origin(hint) is tuple:
            return tuple(value)
        if isinstance(value, str):
            if hint is float and value in _NOT_FINITE:
                return float(value)
            if hint is Path:
                return Path(value)
            if isinstance(hint, enum.EnumType) and value in hint.__members__:
                return hint[value]
        return value

    return read


def _read_object(name: str, value: dict[str, Any], hint: Any, kinds: Kinds) -> Any:
    union = [unmarked(inner)[0] for inner in alternatives(hint)]
    if any((typing.get_origin(inner) or inner) in (dict, Mapping) for inner in union):
        return value
    if "kind" in value:
        return decode_kind(value, name, kinds)
    classes = [inner for inner in union if is_class(inner)]
    if len(classes) == 1 and dataclasses.is_dataclass(classes[0]):
        return decode(typing.cast(type, classes[0]), value, name, kinds)
    return decode_kind(value, name, kinds) if classes else value
