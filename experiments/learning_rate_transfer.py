"""Learning-rate transfer: `python -m experiments.learning_rate_transfer PRESET`.

Trains a family at several widths with Adam in the standard parametrization and with
μAdam in μP, each with a grid of learning rates, and shows where the best one stands.
Writes learning_rate_transfer.json and .png.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from configuration.fields import configuration
from configuration.files import write_text
from evaluation.report.plots import png
from evaluation.scaling.plots import plot_transfer
from evaluation.scaling.transfer import Transfer, learning_rate_transfer
from experiments import command_line
from experiments.command_line import reported
from experiments.presets.serialization import encode
from experiments.run.environment import describe_machine
from lopt.baselines import Adam
from parametrization.rules import ADAM_LIKE, STANDARD
from tasks.base import BaseTask
from tasks.modelled import ModelTask
from tasks.registry import NAMED

PROGRAM = "python -m experiments.learning_rate_transfer"
COLUMNS = {"Adam, standard": STANDARD, "μAdam": ADAM_LIKE}


@configuration
class TransferConfig:
    """One experiment on the transfer of learning rates."""

    task: BaseTask
    """The family; its width is replaced by each of the widths."""
    widths: tuple[int, ...] = (32, 128, 512)
    """Widths; the base width is that of the model."""
    lowest: int = -11
    """Smallest learning rate, as a power of 2."""
    highest: int = -3
    """Largest learning rate, as a power of 2."""
    num_steps: int = 100
    """Inner steps of a run."""
    num_seeds: int = 3
    """Runs of each width and learning rate."""
    out_dir: Path | None = None
    """Where the figure and the numbers go; by default
    runs/learning_rate_transfer/PRESET."""

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
        for name in ("num_steps", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")
        if not isinstance(self.task, ModelTask):
            raise ValueError(f"a {type(self.task).__name__} has no width")
        if self.task.model.rules is not ADAM_LIKE:
            raise ValueError(
                f"task.model.rules = {self.task.model.rules.name}: leave it; the "
                "experiment itself compares the standard parametrization and μP"
            )


def verdict(title: str, transfer: Transfer) -> str:
    """One line about where the best learning rate goes."""
    first, last = transfer.widths[0], transfer.widths[-1]
    best = ", ".join(f"{rate:.4g}" for rate in transfer.best())
    return (
        f"{title}: best {best}; it moves {transfer.shift():+.0f} octaves, and the rate "
        f"of width {first} costs width {last} {100 * transfer.penalty():.1f} % more "
        "loss than its own"
    )


def run(config: TransferConfig, name: str) -> None:
    """Trains, prints and writes."""
    out_dir = config.out_dir or Path("runs/learning_rate_transfer") / name
    rates = [2.0**power for power in range(config.lowest, config.highest + 1)]
    transfers = {}
    with reported():
        out_dir.mkdir(parents=True, exist_ok=True)
        for title, rules in COLUMNS.items():
            task = config.task.with_rules(rules)
            tasks = {width: task.at_width(width) for width in config.widths}
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
    record = {
        "config": encode(config),
        "machine": describe_machine(),
        "rates": rates,
        "losses": {title: t.losses.tolist() for title, t in transfers.items()},
    }
    with reported():
        figure = png(plot_transfer(transfers))
        (out_dir / "learning_rate_transfer.png").write_bytes(figure)
        write_text(out_dir / "learning_rate_transfer.json", json.dumps(record) + "\n")
    print(f"wrote learning_rate_transfer.png and .json to {out_dir}")


def _preset(name: str) -> TransferConfig:
    return TransferConfig(NAMED[name].task())


def main() -> None:
    """Command line."""
    presets = {
        name: (family.description, partial(_preset, name))
        for name, family in NAMED.items()
    }
    name, config = command_line.choose_preset(presets, PROGRAM, sys.argv[1:])
    run(config, name)


if __name__ == "__main__":
    command_line.run(main)
