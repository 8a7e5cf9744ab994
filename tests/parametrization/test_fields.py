"""What a configuration refuses, and in which words."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
import pytest

from parametrization.fields import OPEN, configuration


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@runtime_checkable
class Has(Protocol):
    def method(self) -> None: ...


class Silent(Protocol):
    def method(self) -> None: ...


@configuration
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size = {self.size} must not be negative")


@configuration
class Everything:
    number: float = 1.0
    count: int = 1
    flag: bool = False
    text: str = "a"
    colour: Colour = Colour.RED
    choice: Literal["mean", "final", 3] = "mean"
    maybe: float | None = None
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, str] = (1.0, "a")
    nested: tuple[tuple[int, float], ...] = ()
    inner: Inner = Inner()
    either: Inner | Literal["none"] | tuple[float, ...] = "none"
    path: Path = Path()
    function: Callable[[int], int] = abs
    has: Has | None = None
    silent: Silent | None = None
    anything: Any = None
    wider: Annotated[Inner, OPEN] = Inner()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("number", x) for x in (3, -math.inf, np.float64(0.5), 10**300)],
        *[("count", x) for x in (0, -(2**63) + 1)],
        ("choice", 3),
        ("maybe", 2),
        *[("sizes", x) for x in ((), (3,))],
        ("pair", (1, "b")),
        ("nested", ((1, 2.0), (3, 4.0))),
        *[("either", x) for x in (Inner(3), (), (1, 2.5))],
        ("function", print),
        *[("anything", x) for x in ("x", [1], math.nan)],
        ("silent", 5),
        ("wider", "not an Inner"),
    ],
)
def test_what_fits_is_kept_as_it_is(field, value):
    assert getattr(Everything(**{field: value}), field) is value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("number", "1.0", "number = '1.0' must be a number"),
        ("number", True, "number = True must be a number"),
        ("number", math.nan, "number = nan must be a number"),
        ("number", 10**400, "number = 1000"),
        ("number", np.float32(1), "must be a number"),
        ("number", None, "number = None must be a number"),
        ("count", 1.0, "count = 1.0 must be a whole number"),
        ("count", True, "count = True must be a whole number"),
        ("count", 2**63, "count = 9223372036854775808 must lie within ±2⁶³"),
        ("flag", 1, "flag = 1 must be True or False"),
        ("text", b"a", "text = b'a' must be a text"),
        ("text", 1, "text = 1 must be a text"),
        ("colour", "RED", "colour = 'RED' must be one of RED, BLUE"),
        ("choice", "max", "choice = 'max' must be one of mean, final, 3"),
        ("choice", 3.0, "choice = 3.0 must be one of mean, final, 3"),
        ("choice", [], "choice = [] must be one of mean, final, 3"),
        ("choice", np.ones(2), "choice = array([1., 1.]) must be one of"),
        ("maybe", "a\nb", r"maybe = 'a\nb' must be a number or None"),
        ("sizes", [1, 2], "sizes = [1, 2] must be a tuple, each a whole number"),
        ("sizes", 1, "sizes = 1 must be a tuple, each a whole number"),
        ("sizes", "ab", "sizes = 'ab' must be a tuple, each a whole number"),
        ("sizes", (1, 2.5), "sizes[1] = 2.5 must be a whole number"),
        ("pair", (1.0,), "pair = (1.0,) must be a tuple of 2: a number, a text"),
        ("pair", (1.0, 2), "pair[1] = 2 must be a text"),
        ("nested", ((1, 2.0), (3, "x")), "nested[1][1] = 'x' must be a number"),
        ("inner", {"size": 1}, "inner = {'size': 1} must be of type Inner"),
        ("inner", Inner, "must be of type Inner"),
        (
            "either",
            ("a",),
            "either = ('a',) must be 'none' or a tuple, each a number or of type Inner",
        ),
        ("path", "folder", "path = 'folder' must be a pathlib.Path"),
        ("function", 3, "function = 3 must be a function"),
        ("has", 3, "has = 3 must be None or of type Has"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line_that_names_it(field, value, message):
    with pytest.raises(ValueError) as caught:
        Everything(**{field: value})
    text = str(caught.value)
    assert text.startswith(field) and message in text and "\n" not in text
    assert len(text) < 250


def test_types_come_before_the_checks_of_the_class():
    with pytest.raises(ValueError, match="size = '1' must be a whole number"):
        Inner("1")
    with pytest.raises(ValueError, match="size = -1 must not be negative"):
        Inner(-1)
    with pytest.raises(ValueError, match=r"size = 1\.5 must be a whole number"):
        dataclasses.replace(Inner(), size=1.5)


def test_it_is_a_frozen_dataclass_and_so_are_its_children():
    assert Inner(3) == Inner(3) and hash(Inner(3)) == hash(Inner(3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Inner().size = 2

    @configuration
    class Child(Inner):
        more: float = 0.0

    class Plain(Inner):
        pass

    assert Child(2, 1).more == 1
    for bad in (lambda: Child("2"), lambda: Child(2, "x"), lambda: Plain("2")):
        with pytest.raises(ValueError, match="must be a"):
            bad()
    with pytest.raises(ValueError, match="must not be negative"):
        Child(-1)
