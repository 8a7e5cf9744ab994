"""Cuts of a long text by position, moved to the end of a row or a line."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

# How far a cut may move to the end of a row, as a share of the text.
_ROW = 0.02
# How far it may move to the end of a line otherwise, in bytes.
_LINE = 1 << 12


def cut(
    text: bytes | bytearray, shares: tuple[float, ...], ends: Sequence[int] = ()
) -> list[bytes]:
    """Cuts a text at shares of its length, each moved to the end of a row or a line.

    Args:
        text: rows joined by newlines.
        shares: where to cut, ascending.
        ends: where rows begin, ascending, without the first.

    Returns:
        The parts, which join to the text. Very long lines are cut between two
        characters of UTF-8.
    """
    edges = [0]
    for share in shares:
        edge = max(edges[-1], round(share * len(text)))
        row = bisect.bisect_left(ends, edge)
        if row < len(ends) and ends[row] - edge <= _ROW * len(text):
            edges.append(ends[row])
            continue
        # A cut that is behind a newline already stays.
        end = text.find(b"\n", max(edge - 1, edges[-1]), edge + _LINE)
        if end >= 0:
            edge = end + 1
        # Not inside a character.
        while edge < len(text) and text[edge] & 0xC0 == 0x80:
            edge += 1
        edges.append(edge)
    view = memoryview(text)
    return [bytes(view[a:b]) for a, b in itertools.pairwise([*edges, len(text)])]


def end_within(text: bytes | bytearray, max_bytes: int) -> int:
    """Returns the end of the last line that ends within `max_bytes` of a text.

    A very long line ends between two characters of UTF-8.
    """
    if len(text) <= max_bytes:
        return len(text)
    edge = text.rfind(b"\n", max(0, max_bytes - _LINE), max_bytes) + 1
    if not edge:
        edge = max_bytes
        # A character has at most three bytes behind its first.
        for _ in range(3):
            edge -= text[edge] & 0xC0 == 0x80
    return edge
