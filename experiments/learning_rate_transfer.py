"""Learning-rate transfer: `python -m experiments.learning_rate_transfer PRESET`.

Trains a family at several widths with Adam in the standard parametrization and with
μAdam in μP, over a grid of learning rates, and shows how the best one moves with width.
Writes learning_rate_transfer.json and .png.
"""

from __future__ import annotations

import sys
from pathlib import Path

from configuration.fields import configuration, later
from configuration.ranges import check_range
from evaluation.report.plots import png
from evaluation.scaling.plots import plot_transfer
from evaluation.scaling.transfer import Transfer, learning_rate_transfer
from experiments import command_line
from experiments.command_line import reported
from experiments.presets.families import on_families
from experiments.run import compilation_cache
from experiments.run.memory import check_run
from experiments.run.results import write_results
from lopt.baselines import Adam
from parametrization.rules import ADAM_LIKE, STANDARD
from tasks.base import BaseTask
from tasks.modelled import ModelTask

COLUMNS = {"Adam, standard": STANDARD, "μAdam": ADAM_LIKE}


@configuration
class TransferConfig:
    """Transfer of learning rates over widths."""

    task: BaseTask
    """Task family; its width is replaced by each of the widths."""
    widths: tuple[int, ...] = (32, 128, 512)
    """Widths to compare; the base width is that of the model."""
    lowest: int = -11
    """Smallest learning rate, as a power of 2."""
    highest: int = -3
    """Largest learning rate, as a power of 2."""
    num_steps: int = 100
    """Inner steps of a run."""
    num_seeds: int = 3
    """Runs per width and learning rate."""
    out_dir: Path | None = None
    """Output folder; by default runs/learning_rate_transfer/PRESET."""
    compilation_cache: bool = later(True)
    """Keep compiled programs in the cache folder, for the next start."""

    def __post_init__(self) -> None:
        if len(set(self.widths)) < 2 or min(self.widths) < 1:
            raise ValueError(
                f"widths = {self.widths} must be at least two different positive ones"
            )
        if not -30 <= self.lowest < self.highest <= 10:
            raise ValueError(
                f"lowest = {self.lowest} must be below highest = {self.highest}, both "
                "powers of 2 in [-30, 10]"
            )
        check_range("num_steps", self.num_steps, "[1, 1e8)")
        check_range("num_seeds", self.num_seeds, "[1, 1e6]")
        if not isinstance(self.task, ModelTask):
            raise ValueError(f"a {type(self.task).__name__} has no width")
        if self.task.model.rules is not ADAM_LIKE:
            raise ValueError(
                f"task.model.rules = {self.task.model.rules.name}: leave it; the "
                "experiment itself compares the standard parametrization and μP"
            )


def verdict(title: str, transfer: Transfer) -> str:
    """Returns a line on how the best learning rate moves."""
    first, last = transfer.widths[0], transfer.widths[-1]
    best = ", ".join(f"{rate:.4g}" for rate in transfer.best())
    return (
        f"{title}: best {best}; it moves {transfer.shift():+.0f} octaves, and the rate "
        f"of width {first} costs width {last} {100 * transfer.penalty():.1f} % more "
        "loss than its own"
    )


def run(config: TransferConfig, name: str) -> None:
    """Runs the experiment, prints its tables and writes its results."""
    out_dir = config.out_dir or Path("runs/learning_rate_transfer") / name
    rates = [2.0**power for power in range(config.lowest, config.highest + 1)]
    transfers = {}
    with reported():
        out_dir.mkdir(parents=True, exist_ok=True)
        for title, rules in COLUMNS.items():
            task = config.task.with_rules(rules)
            tasks = {width: task.at_width(width) for width in config.widths}
            for resized in tasks.values():
                check_run(resized, Adam(rules=rules), config.num_steps)
            transfers[title] = learning_rate_transfer(
                tasks,
                Adam(rules=rules),
                rates,
                config.num_steps,
                range(config.num_seeds),
                report=lambda line, title=title: print(f"{title}: {line}", flush=True),
            )
    for title, transfer in transfers.items():
        print(f"\n{title}: mean training loss by learning rate and width")
        print(transfer.table())
    print()
    print("\n".join(verdict(*item) for item in transfers.items()))
    losses = {title: transfer.losses for title, transfer in transfers.items()}
    diverged = {title: transfer.diverged for title, transfer in transfers.items()}
    write_results(
        out_dir,
        "learning_rate_transfer.json",
        config,
        {"rates": rates, "losses": losses, "diverged": diverged},
        {"learning_rate_transfer.png": png(plot_transfer(transfers))},
    )


def main() -> None:
    """Command line."""
    program = "python -m experiments.learning_rate_transfer"
    presets = on_families(TransferConfig)
    name, config = command_line.choose_preset(presets, program, sys.argv[1:])
    compilation_cache.use(config.compilation_cache)
    run(config, name)


if __name__ == "__main__":
    command_line.run(main)
