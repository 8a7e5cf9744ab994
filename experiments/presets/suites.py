"""Evaluation suites by their names."""

from __future__ import annotations

import difflib

from experiments.command_line import InputError
from tasks.suites import SUITES, Suite


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        InputError: in one line, with what is known.
    """
    if name in SUITES:
        return SUITES[name]
    close = difflib.get_close_matches(name, SUITES, n=1)
    hint = f"; perhaps you meant {close[0]!r}" if close else ""
    raise InputError(f"--suite {name!r} must be one of {', '.join(SUITES)}{hint}")
