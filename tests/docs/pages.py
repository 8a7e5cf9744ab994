"""Code blocks and command lines of the documentation, read from its Markdown files.

A block may carry a mark, an HTML comment on the line above its fence:

    <!-- slow -->               runs with the slow tests only
    <!-- not run: REASON -->    is neither run nor parsed
    <!-- run -->                its commands run, as they are
    <!-- run with: FLAGS -->    its commands run, each with these flags added
    <!-- file: NAME -->         is written to this file before the page's commands run
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"),
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
]
LANGUAGES = {"python", "sh", "json", "text", "toml"}

_MARK = re.compile(r"<!-- (slow|not run|run with|run|file)(?:: *(.*?))? *-->")
_FENCE = re.compile(r"^( *)```(.*)$")
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    argument: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_skipped(self) -> bool:
        return self.mark == "not run"


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found, lines = [], (ROOT / page).read_text().splitlines()
    mark, number = ("", ""), 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if given := _MARK.fullmatch(line.strip()):
            mark = (given[1], given[2] or "")
        elif fence := _FENCE.match(line):
            start, indent = number, len(fence[1])
            while lines[number].strip() != "```":
                number += 1
            text = "\n".join(row[indent:] for row in lines[start:number])
            language = fence[2].split(" ")[0]
            found.append(Block(page, start, language, text + "\n", *mark))
            number, mark = number + 1, ("", "")
        elif line.strip():
            mark = ("", "")
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command line of a block; comments are dropped."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


def inline(page: str) -> Iterator[str]:
    """Every code span outside the fenced blocks of a page."""
    kept, inside = [], False
    for line in (ROOT / page).read_text().splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    for found in _INLINE.finditer("\n".join(kept)):
        yield " ".join(found[1].split())
