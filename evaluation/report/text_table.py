"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(lines: Sequence[Sequence[str]], *, grouped: bool = True) -> list[str]:
    """Aligned columns; the first line is the header.

    Args:
        lines: texts, as many in each.
        grouped: whether lines that begin alike belong together. Then a rule stands
            before each such group, and what they begin with is shown once; else one
            rule stands below the header.
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = "  ".join("─" * width for width in widths)
    text, previous = [], ""
    for number, line in enumerate(lines):
        new = line[0] != previous or not grouped
        if number == 1 or (number and new and grouped):
            text.append(rule)
        shown = (line[0] if new else "", *line[1:])
        previous = line[0]
        padded = (cell.ljust(w) for cell, w in zip(shown, widths, strict=True))
        text.append("  ".join(padded).rstrip())
    return text
