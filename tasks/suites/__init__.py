"""Named evaluation suites, as plain values."""

from tasks.registry import reserve
from tasks.suites.cell import AXES as AXES
from tasks.suites.cell import Axis as Axis
from tasks.suites.cell import Cell as Cell
from tasks.suites.cell import Suite as Suite
from tasks.suites.celo import CELO17 as CELO17
from tasks.suites.ladders import LADDER_CPU as LADDER_CPU
from tasks.suites.ladders import LADDER_GPU as LADDER_GPU
from tasks.suites.ladders import LADDER_PAPER as LADDER_PAPER
from tasks.suites.ladders import QUICKSTART as QUICKSTART
from tasks.suites.mulo import MULO_PAPER as MULO_PAPER
from tasks.suites.mulo import MULO_PAPER_LONG as MULO_PAPER_LONG

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
"""Suites by name."""

reserve("a suite", SUITES)
