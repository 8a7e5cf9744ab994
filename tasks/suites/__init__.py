"""Named evaluation suites, as plain values."""

from tasks.suites.cell import AXES, Axis, Cell, Suite
from tasks.suites.celo import CELO17
from tasks.suites.ladders import LADDER_CPU, LADDER_GPU, LADDER_PAPER, QUICKSTART
from tasks.suites.mulo import MULO_PAPER, MULO_PAPER_LONG

__all__ = [
    "AXES",
    "CELO17",
    "LADDER_CPU",
    "LADDER_GPU",
    "LADDER_PAPER",
    "MULO_PAPER",
    "MULO_PAPER_LONG",
    "QUICKSTART",
    "SUITES",
    "Axis",
    "Cell",
    "Suite",
]

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        QUICKSTART,
        LADDER_CPU,
        LADDER_GPU,
        LADDER_PAPER,
        MULO_PAPER,
        MULO_PAPER_LONG,
        CELO17,
    )
}
"""By name; their cells are made when they are asked for."""
