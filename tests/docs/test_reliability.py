"""Each row of the tables of docs/reliability.md names a test that there is."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def rows():
    """The last cell of each row of a table with a column of tests."""
    inside = False
    for line in (ROOT / "docs/reliability.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif cells[-1] == "test":
            inside = True
        elif inside and set(cells[-1]) != {"-"}:
            yield cells[0], cells[-1]


def test_each_row_names_a_test():
    known = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    found = list(rows())
    assert len(found) > 50
    for what, cell in found:
        name = re.fullmatch(r"`(\w+)`", cell)
        assert name and f"test_{name[1]}" in known, (what, cell)
