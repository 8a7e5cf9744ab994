"""Presets of commands that take any task family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from tasks.base import BaseTask
from tasks.registry import NAMED, Family

T = TypeVar("T")


def on_families(
    make: Callable[[BaseTask], T],
) -> dict[str, tuple[str, Callable[[], T]]]:
    """Returns a preset for every family: its description, and `make` of its task."""

    def preset(family: Family) -> T:
        return make(family.task())

    return {
        name: (family.description, partial(preset, family))
        for name, family in NAMED.items()
    }
