"""Dataclasses with fields of every type survive JSON; errors name the field."""

from __future__ import annotations

import abc
import dataclasses
import enum
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import pytest

from configuration.encoding import (
    decode,
    decode_kind,
    encode,
    kinds_of,
)
from configuration.fields import OPEN, Measured, configuration, later


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...


@runtime_checkable
class HasArea(Protocol):
    def area(self): ...


class Silent(Protocol):
    """A protocol that is not runtime-checkable."""

    def area(self): ...


@dataclasses.dataclass(frozen=True)
class Square(Shape):
    side: float = 1.0

    def __post_init__(self):
        if not self.side > 0:
            raise ValueError(f"side = {self.side} must be positive")

    def area(self):
        return self.side**2


@dataclasses.dataclass(frozen=True)
class Circle(Shape):
    radius: float = 1.0

    def area(self):
        return 3 * self.radius**2


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A kind without an area."""


@dataclasses.dataclass(frozen=True)
class Floors:
    low: float = 1e-8


@dataclasses.dataclass(frozen=True)
class Everything:
    count: int = 3
    size: float = 0.5
    flag: bool = True
    text: str = "a"
    colour: Colour = Colour.BLUE
    word: Literal["one", "two"] = "two"
    many: tuple[float, ...] = (0.1, 1e-30)
    pair: tuple[int, float] = (1, 2.5)
    nested: tuple[tuple[int, ...], ...] = ((1, 2), ())
    folder: Path = Path("a/b")
    floors: Floors = Floors(1e-3)
    maybe: float | None = None
    either: int | str | None = "x"
    named: Literal["unit", "none"] | Square = "unit"
    shape: Shape = Square(2.0)
    area: HasArea = Circle(0.3)
    chosen: Square | Circle = Circle()


KINDS = kinds_of(Everything, Square, Circle, Nothing)


def stored(**changes: Any) -> Any:
    return json.loads(json.dumps(encode(Everything(), KINDS))) | changes


@pytest.mark.parametrize(
    "value",
    [
        Everything(),
        Everything(maybe=0.25, either=7, chosen=Square(3.0), area=Square(), many=()),
        Everything(size=float("inf"), many=(-float("inf"), 1.0)),
        Everything(named=Square(0.5)),
        Everything(either=None, flag=False, colour=Colour.RED, folder=Path("/")),
    ],
)
def test_a_value_survives(value):
    data = json.loads(json.dumps(encode(value, KINDS), allow_nan=False))
    assert decode_kind(data, "it", KINDS) == value
    data.pop("kind")
    assert decode(Everything, data, "it", KINDS) == value


def test_the_form_is_plain():
    data = encode(Everything(), KINDS)
    assert data["kind"] == "Everything"
    assert data["floors"] == {"low": 1e-3}  # one class only: no kind
    assert data["shape"] == {"kind": "Square", "side": 2.0}
    assert (data["colour"], data["folder"], data["pair"]) == ("BLUE", "a/b", [1, 2.5])


def test_whole_numbers_are_floats_where_floats_are_meant():
    value = decode_kind(stored(size=2), "it", KINDS)
    assert value.size == 2.0 and type(value.size) is float


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (stored(other=1), r"it\.other is not a field of Everything"),
        ({k: v for k, v in stored().items() if k != "text"}, r"it\.text is missing"),
        (stored(count=True), r"it\.count = True must be a whole number"),
        (stored(count=1.0), r"it\.count = 1\.0 must be a whole number"),
        (stored(flag=1), r"it\.flag = 1 must be True or False"),
        (stored(size="1"), r"it\.size = '1' must be a number"),
        (stored(size=10**400), r"it\.size = 1000.*\.\.\. must be a number"),
        (stored(colour="GREEN"), r"it\.colour = 'GREEN' must be one of RED, BLUE"),
        (stored(word="three"), r"it\.word = 'three' must be one of"),
        (stored(many=0.1), r"it\.many = 0\.1 must be a tuple, each a number"),
        (stored(many=[0.1, "x"]), r"it\.many\[1\] = 'x' must be a number"),
        (
            stored(pair=[1, 2.0, 3]),
            r"it\.pair = \(1, 2\.0, 3\) must be a tuple of 2: a whole",
        ),
        (stored(pair=[1.5, 2.0]), r"it\.pair\[0\] = 1\.5 must be a whole number"),
        (stored(floors=[1]), r"it\.floors = \[1\] must be of type Floors"),
        (stored(floors={"high": 1.0}), r"it\.floors\.high is not a field of Floors"),
        (stored(maybe="x"), r"it\.maybe = 'x' must be a number or None"),
        (
            stored(either=1.5),
            r"it\.either = 1\.5 must be a whole number or a text or N",
        ),
        (
            stored(named="two"),
            r"it\.named = 'two' must be one of unit, none or of type S",
        ),
        (stored(named=1), r"it\.named = 1 must be one of unit, none or of type Square"),
        (stored(shape={"side": 1.0}), r"it\.shape must be an object with a 'kind'"),
        (stored(shape=3), r"it\.shape = 3 must be of type Shape"),
        (stored(shape={"kind": "os"}), r"it\.shape\.kind = 'os' is not known"),
        (stored(shape={"kind": []}), r"it\.shape\.kind = \[\] is not known"),
        (
            stored(shape={"kind": "Square", "side": 0.0}),
            r"side = 0\.0 must be positive",
        ),
        (
            stored(area={"kind": "Nothing"}),
            r"it\.area = Nothing\(\) must be of type HasA",
        ),
        (
            stored(chosen={"kind": "Nothing"}),
            r"it\.chosen = Nothing\(\) must be of type Square, Circle",
        ),
        (
            stored(floors={"kind": "Nothing"}),
            r"it\.floors = Nothing\(\) must be of type Floors",
        ),
        (stored(kind="Other"), r"it\.kind = 'Other' is not known; known are Everyth"),
        ([], r"it must be an object with a 'kind'"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(data, message):
    with pytest.raises(ValueError, match=message) as info:
        decode_kind(data, "it", KINDS)
    assert "\n" not in str(info.value) and len(str(info.value)) < 200


@dataclasses.dataclass(frozen=True)
class Holds:
    value: Any


@pytest.mark.parametrize("value", [float("nan"), print, {1: 2}, Colour, b"x", 1j])
def test_what_json_cannot_hold_is_not_written(value):
    with pytest.raises(ValueError, match="JSON"):
        encode(Holds(value), KINDS)


def test_a_class_of_the_same_name_is_no_kind():
    other = dataclasses.make_dataclass("Square", [("side", float, 1.0)], frozen=True)
    assert "kind" not in encode(other(), KINDS)
    with pytest.raises(ValueError, match="share a name"):
        kinds_of(Square, other)


@dataclasses.dataclass(frozen=True)
class RoundedSquare(Square):
    """No kind, though it derives from one."""


def test_an_unknown_subclass_of_a_kind_is_refused():
    message = "RoundedSquare is not registered and would be read back as Square"
    with pytest.raises(ValueError, match=message) as error:
        encode(Everything(shape=RoundedSquare(2.0)), KINDS)
    assert "\n" not in str(error.value)
    kinds = KINDS | kinds_of(RoundedSquare)
    value = Everything(shape=RoundedSquare(2.0))
    assert decode(Everything, encode(value, kinds), "it", kinds) == value
    # Without kinds there is no base class to confuse it with.
    assert encode(RoundedSquare(2.0), {}) == {"side": 2.0}


def test_a_callable_field_is_refused_when_read():
    @dataclasses.dataclass(frozen=True)
    class Calls:
        function: Callable[[], int]

    with pytest.raises(ValueError):
        decode(Calls, {"function": "print"}, "it", KINDS)


@configuration
class Grown:
    size: int
    axes: str = later("layer", absent="tensor")
    floors: Floors | None = later(None)


def test_an_added_field_has_its_value_for_absent_where_json_lacks_it():
    assert decode(Grown, {"size": 1}, "it", {}) == Grown(1, "tensor")
    assert encode(Grown(1, "tensor"), {}) == {"size": 1}
    for value in (Grown(1), Grown(1, "tensor", Floors(1.0)), Grown(1, "")):
        assert decode(Grown, encode(value, {}), "it", {}) == value
    # Files that do write the value are read as well.
    assert decode(Grown, {"size": 1, "axes": "tensor"}, "it", {}) == Grown(1, "tensor")
    with pytest.raises(ValueError, match=r"it\.size is missing"):
        decode(Grown, {"axes": "tensor"}, "it", {})
    with pytest.raises(ValueError, match=r"it\.axes = 1 must be"):
        decode(Grown, {"size": 1, "axes": 1}, "it", {})


@dataclasses.dataclass(frozen=True)
class Later:
    old: int = 1
    new: Floors = later(Floors())


def test_a_later_field_is_written_only_where_it_differs_from_its_default():
    assert encode(Later(), {}) == {"old": 1}
    assert decode(Later, {"old": 2}, "it", {}) == Later(2)
    changed = Later(2, Floors(0.5))
    assert encode(changed, {}) == {"old": 2, "new": {"low": 0.5}}
    assert decode(Later, encode(changed, {}), "it", {}) == changed
    with pytest.raises(ValueError, match=r"it\.old is missing"):
        decode(Later, {"new": {"low": 0.5}}, "it", {})
    with pytest.raises(ValueError, match=r"it\.new = 3 must be of type Floors"):
        decode(Later, {"old": 1, "new": 3}, "it", {})


@dataclasses.dataclass(frozen=True)
class Measurement:
    curve: tuple[Measured, ...]
    steps: float = 1.0


def test_only_measured_numbers_may_be_nan():
    data = encode(Measurement((1.0, math.nan, math.inf)), {}, nan=True)
    assert data == {"curve": [1.0, "nan", "inf"], "steps": 1.0}
    curve = decode(Measurement, data, "it", {}).curve
    assert curve[::2] == (1.0, math.inf) and math.isnan(curve[1])
    with pytest.raises(ValueError, match=r"it\.steps = nan must be a number"):
        decode(Measurement, data | {"steps": "nan"}, "it", {})
    with pytest.raises(ValueError, match=r"it\.curve\[0\] = 'x' must be a number"):
        decode(Measurement, data | {"curve": ["x"]}, "it", {})


@dataclasses.dataclass(frozen=True)
class Asks:
    silent: Silent
    wider: Annotated[Square, OPEN] = Square()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"silent": 3}, r"it\.silent = 3 must be of type Silent"),
        ({"silent": {"kind": "Square", "side": 1.0}}, r"it\.silent = Square"),
        ({"silent": {}}, r"it\.silent must be an object with a 'kind'"),
        ({"silent": None, "wider": 3}, "must be of type"),
    ],
)
def test_json_is_read_strictly_where_python_takes_any_object(data, message):
    with pytest.raises(ValueError, match=message):
        decode(Asks, {"wider": {"side": 1.0}} | data, "it", KINDS)
