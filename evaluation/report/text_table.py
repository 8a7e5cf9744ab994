"""Text tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(lines: Sequence[Sequence[str]], *, grouped: bool = True) -> list[str]:
    """Aligns columns; the first line is the header.

    Args:
        lines: the texts of each line, as many in each.
        grouped: shows the first column once for lines that share it, and a rule before
            each such group; else one rule stands below the header.
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
