"""Which knob of the quickstart's recipe matters: `python -m benchmarks.ablations`.

Each arm changes one thing of the recipe. Arms are meta-trained for a third of the
recipe's outer steps with the same meta-seeds, and judged by the running average of θ on
cells of the quickstart suite, with validation seeds and `outer_valid` only: nothing
here is chosen by a figure that the README reports. Rows are appended to a file as they
are made, and an arm and a meta-seed that stand there already are not run again; rows of
another recipe or length are refused. The table shows every arm's figures and its
difference to the recipe, paired by meta-seed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from configuration import digests
from evaluation.plan import parametrize
from evaluation.report.statistics import Paired, paired
from evaluation.report.summary import MARKS, format_paired
from evaluation.report.text_table import text_table
from evaluation.run import RunResult, evaluate
from experiments.presets.configs import QUICKSTART, TrainConfig
from experiments.presets.estimators import ESTIMATORS
from experiments.presets.serialization import encode
from experiments.presets.steps import Steps
from experiments.run import compilation_cache
from experiments.run.environment import describe_machine
from experiments.run.validation import FIRST_SEED
from lopt.baselines import Adam
from lopt.schedules import WarmupStableDecay
from lopt.wrappers.base import Wrapper, innermost
from metatrain.expert import Expert
from metatrain.objective import Objective
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE
from tasks.groups import TaskDistribution, over_widths
from tasks.suites.ladders import QUICKSTART as SUITE

Arm = Callable[[TrainConfig], TrainConfig]
ByArm = dict[str, dict[int, Any]]
"""Cells by arm and meta-seed."""
SEEDS = tuple(range(FIRST_SEED, FIRST_SEED + 4))
"""Seeds of the judged runs: those of validation."""
CELLS = tuple(cell.name for cell in SUITE.cells)
SMOOTHING = 0.95
RECIPE = "recipe"


def _rule(config: TrainConfig, **fields: Any) -> TrainConfig:
    """Changes fields of the innermost optimizer."""

    def change(optimizer: Any) -> Any:
        if isinstance(optimizer, Wrapper):
            return replace(optimizer, inner=change(optimizer.inner))  # pyright: ignore
        return replace(optimizer, **fields)

    return replace(config, lopt=change(config.lopt))


def _steps(**fields: Any) -> Arm:
    return lambda config: replace(config, lopt=Steps(**fields).of(config.lopt))


def _estimator(**fields: Any) -> Arm:
    return lambda c: replace(c, estimator=replace(c.estimator, **fields))


def _lengths(**fields: Any) -> Arm:
    return lambda c: _estimator(lengths=replace(c.estimator.lengths, **fields))(c)


def _outer(factor: float) -> Arm:
    return lambda c: replace(
        c, outer=replace(c.outer, learning_rate=factor * c.outer.learning_rate)
    )


def _objective(**fields: Any) -> Arm:
    return lambda c: replace(c, objective=Objective(**fields))


def _scaled(name: str, factor: float) -> Arm:
    """Multiplies a number of the estimator, rounded if it is whole."""

    def change(config: TrainConfig) -> TrainConfig:
        value = getattr(config.estimator, name)
        return _estimator(**{name: type(value)(value * factor)})(config)

    return change


def _widths(config: TrainConfig) -> TrainConfig:
    """Draws one of three widths in each outer step."""
    groups = over_widths(config.task, (16, 32, 64))  # pyright: ignore[reportArgumentType]
    return replace(config, task=TaskDistribution(groups, each_step="one"))


def _imitation(config: TrainConfig) -> TrainConfig:
    """Begins with a rule that stands still, and with a tuned Adam to imitate."""
    adam = Adam(0.0442, "cosine", rules=ADAM_LIKE)
    n = config.num_steps
    return replace(
        _rule(config, initial_step=0.0), expert=Expert(adam, n // 20, n // 2)
    )


ARMS: dict[str, tuple[str, Arm]] = {
    RECIPE: ("the recipe itself", lambda config: config),
    "no schedule": ("constant steps instead of a cosine", _steps(schedule="constant")),
    "linear": (
        "a linear fall to 0 instead of a cosine",
        _steps(schedule=WarmupStableDecay(warmup=0.0, decay=1.0)),
    ),
    "no curriculum": (
        "all lengths from the beginning",
        _lengths(stages=(), growth="constant"),
    ),
    "short episodes": ("at most 600 steps", _lengths(maximum=600)),
    "half sigma": ("half the perturbation", _scaled("sigma", 0.5)),
    "double sigma": ("twice the perturbation", _scaled("sigma", 2.0)),
    "half rate": ("half the outer rate", _outer(0.5)),
    "double rate": ("twice the outer rate", _outer(2.0)),
    "half the pairs": ("half the cost", _scaled("num_pairs", 0.5)),
    "double the pairs": ("twice the cost", _scaled("num_pairs", 2.0)),
    "noise reuse": (
        "one noise an episode instead of PES",
        lambda c: replace(c, estimator=ESTIMATORS["noise_reuse_es"](c.estimator)),  # pyright: ignore
    ),
    "last 20": ("only the last 20 losses count", _objective(figure="last_k", k=20)),
    "log loss": ("the mean of log losses", _objective(figure="mean_log")),
    "held out": (
        "losses of held-out batches",
        _objective(split="inner_valid"),
    ),
    "no decay": ("no weight decay", _steps(weight_decay=0.0)),
    "more decay": (
        "three times the weight decay",
        lambda c: _steps(weight_decay=3 * c.lopt.inner.weight_decay)(c),  # pyright: ignore
    ),
    "double units": (
        "twice the hidden units",
        lambda c: _rule(c, hidden_size=2 * innermost(c.lopt).hidden_size),  # pyright: ignore
    ),
    "no initial step": (
        "an untrained rule stands still",
        lambda c: _rule(c, initial_step=0.0),
    ),
    "no bound": (
        "steps of any size",
        lambda c: _rule(c, largest_step=None),
    ),
    "small exponent": (
        "the papers' exp_mult = .001",
        lambda c: _rule(c, exp_mult=0.001),
    ),
    "small floors": ("WIDTH_SAFE instead of PAPER", _steps(epsilons="width_safe")),
    "imitation": ("no initial step; a tuned Adam to imitate at first", _imitation),
    "widths": ("widths 16, 32 and 64 by turns", _widths),
}
"""Arms by name: what they change, and how."""


def shortened(config: TrainConfig, num_steps: int) -> TrainConfig:
    """Returns a recipe with fewer outer steps, its curriculum and warm-up in step."""
    share = num_steps / config.num_steps
    lengths = config.estimator.lengths
    stages = tuple(
        (max(1, round(share * until)), low, high) for until, low, high in lengths.stages
    )
    warmup = round(share * config.outer.warmup_steps)
    lengths: EpisodeLengths = replace(lengths, stages=stages)
    return replace(
        config,
        num_steps=num_steps,
        outer=replace(config.outer, warmup_steps=warmup),
        estimator=replace(config.estimator, lengths=lengths),
    )


def configured(arm: str, seed: int, num_steps: int) -> TrainConfig:
    """Returns the configuration of one meta-training."""
    config = shortened(QUICKSTART, num_steps)
    return ARMS[arm][1](replace(config, seed=seed))


def settings(arm: str, seed: int, num_steps: int) -> str:
    """Returns a digest of all that an arm's θ depends on but the program."""
    encoded = encode(configured(arm, seed, num_steps))
    return digests.of_json({k: v for k, v in encoded.items() if k != "run"})


def read(path: Path, num_steps: int) -> list[dict[str, Any]]:
    """Returns the rows of a file.

    Raises:
        ValueError: naming the line that is damaged, or was made with other settings.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            arm, seed, made = row["arm"], row["seed"], row["settings"]
            missing = [cell for cell in CELLS if cell not in row["cells"]]
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path} is damaged in line {number}: delete the line"
            ) from None
        if arm not in ARMS or missing or made != settings(arm, seed, num_steps):
            raise ValueError(
                f"{path}, line {number}: arm {arm!r}, meta-seed {seed}, was run for "
                f"{row.get('outer_steps')} outer steps, and not with today's settings "
                f"for {num_steps}: give --steps, or another --out"
            )
        rows.append(row)
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Appends a row, on a line of its own even behind one that was cut off."""
    with path.open("ab+") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        start = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(start + json.dumps(row).encode() + b"\n")


def meta_train(config: TrainConfig) -> tuple[Any, float]:
    """Returns the running average of θ at the end, and the seconds that it took."""
    begin = time.perf_counter()
    training = config.build()
    tasks = [group.task for group in config.distribution.groups]
    data = {i: jax.device_put(task.load_data()) for i, task in enumerate(tasks)}
    state = training.init()
    for step in range(config.num_steps):
        here = {i: data[i] for i in training.groups_at(step)}
        state, _ = training.step(state, here)
    return jax.block_until_ready(state.average), time.perf_counter() - begin


def judge(config: TrainConfig, theta: Any) -> dict[str, dict[str, float]]:
    """Returns the figures of θ in each cell, means over seeds; losses in nats."""
    found = {}
    for cell in SUITE.cells:
        task = parametrize(cell.task, ADAM_LIKE, 32)
        runs = evaluate(task, config.lopt, theta, cell.num_steps, SEEDS)
        found[cell.name] = figures(runs)
    return found


def figures(runs: RunResult) -> dict[str, float]:
    """Returns mean, final and held-out loss, and how far the smoothed loss rose."""
    smooth, lowest = float(runs.curve[:, 0].mean()), math.inf
    for loss in runs.curve.mean(axis=0):
        smooth = SMOOTHING * smooth + (1.0 - SMOOTHING) * float(loss)
        lowest = min(lowest, smooth)
    return {
        "mean": float(runs.mean_loss.mean()),
        "final": float(runs.final_loss.mean()),
        "held out": float(runs.valid_loss.mean()),
        "rise": smooth - lowest,
    }


def overview(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the lines of a table of mean losses: arms down, cells across."""
    by_arm = _by_arm(rows)
    lines: list[tuple[str, ...]] = [("arm", "seeds", *CELLS, "what it changes")]
    for arm in filter(by_arm.get, ARMS):
        means = []
        for cell in CELLS:
            mean = statistics.fmean(c[cell]["mean"] for c in by_arm[arm].values())
            means.append(f"{mean:.4f} {_mark(by_arm, arm, cell)}".rstrip())
        lines.append((arm, str(len(by_arm[arm])), *means, ARMS[arm][0]))
    return text_table(lines)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the lines of a table by cell: means over meta-seeds, differences."""
    by_arm = _by_arm(rows)
    head = ("cell", "arm", "seeds", "mean loss", "minus the recipe's [95 %]")
    lines: list[tuple[str, ...]] = [(*head, "final", "held out", "rise")]
    for cell in CELLS:
        for arm in filter(by_arm.get, ARMS):
            own = [cells[cell] for cells in by_arm[arm].values()]
            mean = {
                figure: statistics.fmean(x[figure] for x in own)
                for figure in ("mean", "final", "held out", "rise")
            }
            lines.append(
                (
                    *(cell, arm, str(len(own)), f"{mean['mean']:.4f}"),
                    _difference(by_arm, arm, cell),
                    *(f"{mean['final']:.1e}", f"{mean['held out']:.3f}"),
                    f"{mean['rise']:.4f}",
                )
            )
    return text_table(lines)


def _by_arm(rows: list[dict[str, Any]]) -> ByArm:
    by_arm: ByArm = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = row["cells"]
    return by_arm


def _pair(by_arm: ByArm, arm: str, cell: str) -> Paired | None:
    """Compares an arm with the recipe on the meta-seeds that both have."""
    recipe = by_arm.get(RECIPE, {})
    seeds = sorted(by_arm[arm].keys() & recipe.keys())
    if arm == RECIPE or not seeds:
        return None
    ours, theirs = by_arm[arm], recipe
    return paired(
        [ours[seed][cell]["mean"] for seed in seeds],
        [theirs[seed][cell]["mean"] for seed in seeds],
    )


def _mark(by_arm: ByArm, arm: str, cell: str) -> str:
    """Returns how an arm compares with the recipe, if more than one pair says so."""
    pair = _pair(by_arm, arm, cell)
    return MARKS[pair.verdict] if pair and pair.num > 1 else ""


def _difference(by_arm: ByArm, arm: str, cell: str) -> str:
    pair = _pair(by_arm, arm, cell)
    if pair is None:
        return "–"
    if pair.num == 1:
        return f"{pair.mean:+.4f}".replace("-", "−")
    return f"{format_paired(pair)} {MARKS[pair.verdict]}"


def main() -> None:
    """Runs the arms that are missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="*", default=[], help="names; default all")
    parser.add_argument("--seeds", type=int, default=3, help="number of meta-seeds")
    parser.add_argument("--steps", type=int, default=QUICKSTART.num_steps // 3)
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.arms if name not in ARMS]:
        parser.error(f"unknown arm {unknown[0]!r}: known are {', '.join(ARMS)}")
    if arguments.steps < 1 or arguments.seeds < 1:
        parser.error("--steps and --seeds must be at least 1")
    if arguments.table and not arguments.out:
        parser.error("--table prints what --out FILE holds: name the file")
    rows: list[dict[str, Any]] = []

    def found() -> list[dict[str, Any]]:
        """Returns the rows there are now; another process may have added some."""
        try:
            if arguments.out:
                if not arguments.table:
                    arguments.out.touch()
                return read(arguments.out, arguments.steps)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        return rows

    compilation_cache.use(True)
    for arm in () if arguments.table else arguments.arms or ARMS:
        for seed in range(arguments.seeds):
            rows = found()
            if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                continue
            config = configured(arm, seed, arguments.steps)
            theta, seconds = meta_train(config)
            row = {"arm": arm, "seed": seed, "outer_steps": arguments.steps}
            row["settings"] = settings(arm, seed, arguments.steps)
            row |= {"seconds": round(seconds, 1), "cells": judge(config, theta)}
            row |= describe_machine()
            rows.append(row)
            losses = {name: x["mean"] for name, x in row["cells"].items()}
            told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
            print(f"{arm}, meta-seed {seed}: {told} ({seconds:.0f} s)", flush=True)
            if arguments.out:
                append(arguments.out, row)
    rows = found()
    print("\n".join([*overview(rows), "", *table(rows)]))


if __name__ == "__main__":
    main()
