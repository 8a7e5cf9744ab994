"""Evaluation suites by their names."""

from __future__ import annotations

from experiments.command_line import InputError, suggestion
from tasks.suites import SUITES, Suite


def find_suite(name: str) -> Suite:
    """Returns the suite of that name, or raises `InputError`."""
    if name in SUITES:
        return SUITES[name]
    raise InputError(
        f"--suite {name!r} must be one of {', '.join(SUITES)}{suggestion(name, SUITES)}"
    )
