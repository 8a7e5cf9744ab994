"""The optimizers that a command line can name: `python -m experiments.optimizers`.

Prints, for each, the numbers in θ, the bytes of state per parameter, and whether an
update takes the loss. `--lopt NAME` puts a learned one into a preset of
`experiments.train`; `experiments.evaluate --also NAME` adds a baseline.
"""

from __future__ import annotations

import sys

from evaluation.cost import optimizer_cost
from evaluation.plan import MORE
from evaluation.report.text_table import text_table
from experiments import command_line
from experiments.command_line import InputError
from experiments.presets.optimizers import OPTIMIZERS


def table() -> str:
    """Returns a line for each optimizer."""
    lines = [("name", "θ", "state, B/parameter", "loss", "")]
    learned = [(n, o.make(), o.description) for n, o in OPTIMIZERS.items()]
    baselines = [(n, lopt, rows) for n, (rows, lopt) in MORE.items()]
    for name, lopt, about in [*learned, *baselines]:
        cost = optimizer_cost(lopt)
        loss = "yes" if cost.needs_loss else "no"
        numbers = (f"{cost.meta_parameters:,}", f"{cost.state_bytes:.1f}", loss)
        lines.append((name, *numbers, about))
    return "\n".join(text_table(lines, grouped=False))


def main() -> None:
    """Command line."""
    if sys.argv[1:] not in ([], ["list"]):
        raise InputError("python -m experiments.optimizers takes no argument but list")
    print(table())


if __name__ == "__main__":
    command_line.run(main)
