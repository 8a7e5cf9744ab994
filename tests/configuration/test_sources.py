"""Every file is read and written in UTF-8, and read by the one function that may."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("configuration", "parametrization", "tasks", "lopt", "metatrain")
ROOMS += ("evaluation", "experiments", "torch_lopt", "examples", "benchmarks")
# Files that nobody hands in.
OWN = {
    "configuration/modules.py": "the sources of this package",
    "configuration/digests.py": "/proc/self/mountinfo",
    "experiments/run/compilation_cache.py": "/proc/cpuinfo",
    "experiments/run/environment.py": "/proc/cpuinfo",
    "tasks/data/standard_library.py": "Python's own sources",
}


def calls(path):
    """Calls in a file, by the name of the function or method."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call):
            function = node.func
            is_method = isinstance(function, ast.Attribute)
            yield function.attr if is_method else getattr(function, "id", ""), node


def is_method(node):
    """Whether it is no function of `configuration.files`."""
    return (
        isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) != "files"
    )


def in_the_locale_s_encoding(name, node):
    """Whether the call reads or writes text without naming an encoding."""
    if any(keyword.arg == "encoding" for keyword in node.keywords):
        return False
    if name in ("read_text", "write_text"):
        # As a word it is the first or, of `write_text`, the second.
        return is_method(node) and "'utf-8'" not in map(ast.unparse, node.args)
    if name not in ("open", "fdopen"):
        return False
    owner = ast.unparse(node.func.value) if is_method(node) else ""
    if name == "open" and owner in ("os", "Image"):
        return False
    # The mode is the first word of `Path.open`, the second of functions.
    modes = node.args[0 if owner and name == "open" else 1 :][:1]
    return not any("b" in ast.unparse(mode) for mode in modes)


@pytest.mark.parametrize("room", ROOMS)
def test_text_is_utf_8_whatever_the_locale(room):
    places = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / room).rglob("*.py")
        for name, node in calls(path)
        if in_the_locale_s_encoding(name, node)
    ]
    assert places == []


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "benchmarks"])
def test_files_that_a_user_may_hand_in_are_read_by_one_function(room):
    places = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / room).rglob("*.py")
        if str(path.relative_to(ROOT)) not in OWN
        for name, node in calls(path)
        if name in ("read_text", "read_bytes", "load_file")
        if is_method(node) or name == "load_file"
    ]
    assert places == []
