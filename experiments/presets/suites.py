"""Evaluation suites by their names."""

from __future__ import annotations

from experiments.command_line import InputError, suggestion
from tasks.suites import SUITES, Suite


def find_suite(name: str, option: str = "--suite") -> Suite:
    """Returns the suite of that name, or raises `InputError` that names the option."""
    if name in SUITES:
        return SUITES[name]
    known = f"{', '.join(SUITES)}{suggestion(name, SUITES)}"
    raise InputError(f"{option} {name!r} must be one of {known}")
