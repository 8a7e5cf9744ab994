"""Values that a configuration refuses, and its messages."""

from __future__ import annotations

import copy
import dataclasses
import enum
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
import pytest

from configuration.fields import OPEN, configuration
from lopt import SmallFC
from parametrization import ADAM_LIKE
from parametrization.rules import Rules


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@runtime_checkable
class Has(Protocol):
    def method(self) -> None: ...


class Method:
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
    mixed: int | float = 1
    path: Path = Path()
    function: Callable[[int], int] = abs
    has: Has | None = None
    silent: Silent | None = None
    anything: Any = None
    wider: Annotated[Inner, OPEN] = Inner()


@configuration
class Child(Inner):
    more: float = 0.0


class Plain(Inner):
    pass


@configuration
class Wider(Inner):
    size: int | float = 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("number", x) for x in (3.0, -math.inf, 1e300)],
        *[("count", x) for x in (0, -(2**63) + 1)],
        ("choice", 3),
        ("maybe", 2.5),
        *[("sizes", x) for x in ((), (3,))],
        ("pair", (1.0, "b")),
        ("nested", ((1, 2.0), (3, 4.0))),
        *[("either", x) for x in (Inner(3), (), (1.0, 2.5))],
        *[("mixed", x) for x in (1, 1.0)],
        ("function", print),
        *[("anything", x) for x in ("x", [1], math.nan)],
        ("silent", 5),
        ("wider", "not an Inner"),
    ],
)
def test_what_fits_is_kept_as_it_is(field, value):
    assert getattr(Everything(**{field: value}), field) is value


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("number", 3, 3.0),
        ("number", np.int32(3), 3.0),
        ("number", np.float64(0.5), 0.5),
        ("number", np.float32(0.5), 0.5),
        ("count", np.int64(7), 7),
        ("flag", np.bool_(True), True),
        ("maybe", 2, 2.0),
        ("sizes", tuple(np.arange(2)), (0, 1)),
        ("pair", (1, "b"), (1.0, "b")),
        ("nested", ((np.int8(1), 2),), ((1, 2.0),)),
        ("mixed", np.int64(1), 1),
        ("mixed", np.float32(1), 1.0),
    ],
)
def test_numbers_become_the_field_s_own(field, value, kept):
    """Otherwise equal configurations could be encoded differently."""
    found = getattr(Everything(**{field: value}), field)
    assert repr(found) == repr(kept)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("number", "1.0", "number = '1.0' must be a number"),
        ("number", True, "number = True must be a number"),
        ("number", math.nan, "number = nan must be a number"),
        ("number", 10**400, "number = 1000"),
        ("number", np.float32(math.nan), "must be a number"),
        ("number", 1j, "number = 1j must be a number"),
        ("number", np.ones(1), "number = array([1.]) must be a number"),
        ("count", np.float64(1), "must be a whole number"),
        ("flag", np.int64(1), "must be True or False"),
        ("number", None, "number = None must be a number"),
        ("count", 1.0, "count = 1.0 must be a whole number"),
        ("count", True, "count = True must be a whole number"),
        ("count", 2**63, "count = 9223372036854775808 must lie within ±2⁶³"),
        ("flag", 1, "flag = 1 must be True or False"),
        ("text", b"a", "text = b'a' must be a text"),
        ("text", 1, "text = 1 must be a text"),
        ("text", "a\ud800b", r"text = 'a\ud800b' must be Unicode text, without lone"),
        ("pair", (1.0, "\udcff"), r"pair[1] = '\udcff' must be Unicode text"),
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
        ("has", Method, "must be None or of type Has"),
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

    for bad in (lambda: Child("2"), lambda: Child(2, "x"), lambda: Plain("2")):
        with pytest.raises(ValueError, match="must be a"):
            bad()
    with pytest.raises(ValueError, match="must not be negative"):
        Child(-1)
    assert Child(2, 1).more == 1
    # What a child says of a field counts.
    assert Wider(2.5).size == 2.5
    with pytest.raises(ValueError, match="size = 'x' must be a whole number or a num"):
        Wider("x")


def test_a_class_inside_a_function_is_checked_as_far_as_its_types_are_known():
    class Local:
        pass

    @configuration
    class Here(Inner):
        local: Local | None = None

    assert Here(1, Local()).size == 1
    with pytest.raises(ValueError, match="size = 'x' must be a whole number"):
        Here("x")


def test_configurations_travel_between_processes():
    for rules in Rules:
        assert pickle.loads(pickle.dumps(rules)) is rules
    lopt = SmallFC(hidden_size=3, rules=ADAM_LIKE)
    assert pickle.loads(pickle.dumps(lopt)) == lopt
    assert copy.deepcopy(lopt) == lopt
