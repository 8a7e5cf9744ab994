"""Costs of groups, variations and streaming: `python -m benchmarks.distributions`.

Three tables. *Variation*: the time of an outer step with everything varied over that
of the plain task, and the time to sample a variation as a share of a window. *Groups*:
seconds and programs compiled when one more group is added. *Streaming*: outer steps
with the training rows on the host over the same with the rows on the device, on MNIST
where `METATRAIN_DATA_DIR` has it. Compared things are measured in turn, in one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.families import product
from experiments.run.environment import describe_machine
from lopt.base import LearnedOptimizer
from lopt.baselines import Adam
from lopt.learned.small_fc import SmallFC
from metatrain.estimators.pes import PES
from metatrain.inner_training import InnerTraining
from metatrain.objective import Objective
from metatrain.outer import MetaTraining, ProblemGroup
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.streaming import Feed, load
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE
from tasks.base import Task
from tasks.classification import ImageClassification
from tasks.data.tfds_images import TFDSImages
from tasks.models.mlp import MLP
from tasks.variation import UNVARYING, Level, Variation

DIGITS = ImageClassification(MLP((32,), base_width=32))
LOPTS: dict[str, LearnedOptimizer] = {
    "Adam": Adam(),
    "small_fc 32": SmallFC(hidden_size=32, rules=ADAM_LIKE),
}


def training(
    lopt: LearnedOptimizer, *groups: tuple[str, Task, Variation]
) -> MetaTraining:
    """Builds meta-training with N = 8, T = 50, episodes of 1,000 steps."""
    problems = tuple(
        ProblemGroup(name, InnerTraining(task, lopt, Objective(), variation))
        for name, task, variation in groups
    )
    estimator = PES(lengths=EpisodeLengths(1000, 1000))
    return MetaTraining(problems, lopt, estimator, OuterOptimizer(), num_steps=10**6)


class Runner:
    """A run that is advanced step by step, and the times of its steps."""

    def __init__(self, meta: MetaTraining, tasks: list[Task], *, stream: bool) -> None:
        self.meta, self.seconds = meta, []
        self.feed = Feed(meta, tasks, [load(task, stream=stream) for task in tasks])
        self.state, self.number = meta.init(), 0

    def step(self) -> None:
        """Takes one outer step, from asking for its data to having its metrics."""
        begin = time.perf_counter()
        self.state, metrics = self.meta.step(self.state, self.feed.at(self.number))
        jax.block_until_ready(metrics)
        self.number += 1
        self.seconds.append(time.perf_counter() - begin)

    @property
    def median(self) -> float:
        """Median seconds of a step, without the first two."""
        return statistics.median(self.seconds[2:])


def in_turn(repeats: int, *runners: Runner) -> None:
    """Advances the runners in turn, so that other load affects all alike."""
    for _ in range(2 + repeats):
        for runner in runners:
            runner.step()
    for runner in runners:
        runner.feed.__exit__()


def variations(repeats: int) -> list[dict[str, Any]]:
    """Measures each level of reparametrization, with everything else varied too."""
    rows = []
    levels: tuple[Level, ...] = ("none", "task", "tensor", "parameter")
    for name, lopt in LOPTS.items():
        for level in levels:
            variation = Variation(
                level,
                loss_scale=(0.1, 10.0),
                init_scale=(0.5, 2.0),
                label_noise=(0.0, 0.2),
                batch_share=0.25,
            )
            plain = Runner(
                training(lopt, ("plain", DIGITS, UNVARYING)), [DIGITS], stream=False
            )
            varied = Runner(
                training(lopt, ("varied", DIGITS, variation)), [DIGITS], stream=False
            )
            in_turn(repeats, plain, varied)
            sampling = _time_sampling(variation, plain.meta.estimator.num_members // 2)
            rows.append(
                {
                    "table": "variation",
                    "optimizer": name,
                    "reparametrization": level,
                    "plain_ms": round(1e3 * plain.median, 1),
                    "varied_over_plain": round(varied.median / plain.median, 3),
                    "sampling_ms": round(1e3 * sampling, 3),
                    "sampling_share_percent": round(100 * sampling / plain.median, 2),
                }
            )
            _show(rows[-1])
    return rows


def _time_sampling(variation: Variation, num_pairs: int) -> float:
    sample: Callable[..., Any] = jax.jit(
        jax.vmap(lambda key: variation.sample(DIGITS, key))
    )
    seconds = []
    for repeat in range(50):
        keys = jax.random.split(jax.random.key(repeat), num_pairs)
        begin = time.perf_counter()
        jax.block_until_ready(sample(keys))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[5:])


def groups(repeats: int) -> list[dict[str, Any]]:
    """Measures the compilation of each additional group."""
    del repeats  # each group is compiled once
    counted: list[float] = []

    def listen(event: str, duration_secs: float, **about: Any) -> None:
        del about
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    tasks: list[Task] = [DIGITS.at_width(width) for width in (8, 16, 24, 40)]
    named = [(f"width_{task.width}", task, UNVARYING) for task in tasks]
    meta = training(LOPTS["small_fc 32"], *named)
    meta = dataclasses.replace(meta, each_step="one")
    state, rows = meta.init(), []
    for index, task in enumerate(tasks):
        for _ in range(2):
            del counted[:]
            begin = time.perf_counter()
            state, metrics = meta.step(state, {index: task.load_data()})
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - begin
            rows.append(
                {
                    "table": "groups",
                    "group": index + 1,
                    "step": "first" if len(rows) % 2 == 0 else "second",
                    "programs": sum(1 for x in counted if x > 0.5),
                    "small_programs": sum(1 for x in counted if x <= 0.5),
                    "seconds": round(seconds, 2),
                }
            )
            _show(rows[-1])
    jax.monitoring.unregister_event_duration_listener(listen)
    return rows


def streaming(repeats: int) -> list[dict[str, Any]]:
    """Compares, for each optimizer, MNIST on the host with MNIST on the device."""
    task = ImageClassification(MLP((128, 128), base_width=32), TFDSImages("mnist"))
    rows = []
    for name, lopt in LOPTS.items():
        meta = training(lopt, ("mnist", task, UNVARYING))
        resident = Runner(meta, [task], stream=False)
        streamed = Runner(meta, [task], stream=True)
        in_turn(repeats, resident, streamed)
        rows.append(
            {
                "table": "streaming",
                "optimizer": name,
                "resident_ms": round(1e3 * resident.median, 1),
                "streamed_ms": round(1e3 * streamed.median, 1),
                "rate_percent": round(100 * resident.median / streamed.median, 1),
            }
        )
        _show(rows[-1])
    return rows


def _show(row: dict[str, Any]) -> None:
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tables", nargs="*", help="variation, groups, streaming; all by default"
    )
    parser.add_argument("--repeats", type=int, default=7, help="steps of each row")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    arguments = parser.parse_args()
    known = {"variation": variations, "groups": groups, "streaming": streaming}
    unknown = sorted(set(arguments.tables) - set(known))
    if unknown:
        parser.error(f"unknown table {unknown[0]!r}; known: {', '.join(known)}")
    rows = [
        row
        for name in arguments.tables or known
        for row in known[name](arguments.repeats)
    ]
    about = {"product_gflops": round(product(), 1), **describe_machine()}
    print(json.dumps(about))
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row | about) + "\n")


if __name__ == "__main__":
    main()
