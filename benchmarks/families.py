"""A row per family: `python -m benchmarks.families [NAME ...]`.

What it costs to compile a window of training with Adam, how many inner steps a second
it then takes at batch 128, and how many bytes lie on the device: the parameters and the
optimizer's state, what the compiled window needs beside them, and the dataset. The
2048³ float32 matrix product of the same run stands below, to compare machines by.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.run.environment import describe_machine
from lopt.baselines import Adam
from metatrain.inner import InnerLoop, start
from metatrain.unroll import unroll
from tasks.registry import FAMILIES

STEPS = 20
REPEATS = 5
BATCH = 128


def measure(name: str) -> dict[str, Any]:
    """Measures one family."""
    task = FAMILIES[name].task()
    if hasattr(task, "batch_size"):
        task = dataclasses.replace(task, batch_size=BATCH)
    dataset = task.load_data()
    lopt = Adam(1e-3)
    loop, theta = InnerLoop(task, lopt), lopt.init(jax.random.key(0))

    def window(state: Any, dataset: Any, key: jax.Array) -> Any:
        return unroll(loop, theta, state, dataset, key, num_steps=STEPS)[:2]

    state = jax.jit(lambda key: start(loop, theta, key, STEPS))(jax.random.key(0))
    begin = time.perf_counter()
    program = jax.jit(window).lower(state, dataset, jax.random.key(0)).compile()
    compiled = time.perf_counter() - begin
    memory = program.memory_analysis()
    state, _ = jax.block_until_ready(program(state, dataset, jax.random.key(1)))
    seconds = []
    for repeat in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(program(state, dataset, jax.random.key(repeat)))
        seconds.append(time.perf_counter() - begin)
    return {
        "family": name,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "tensors": len(jax.tree.leaves(state.params)),
        "compile_s": round(compiled, 2),
        "steps_per_s": round(STEPS / statistics.median(seconds), 1),
        "state_bytes": _bytes(state),
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        "dataset_bytes": _bytes(dataset),
    }


def _bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree) if hasattr(x, "nbytes"))


def product() -> float:
    """Returns GFLOP/s of a 2048³ float32 matrix product."""
    x = jnp.ones((2048, 2048))
    multiply = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(multiply(x, x))
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        jax.block_until_ready(multiply(x, x))
        seconds.append(time.perf_counter() - begin)
    return 2 * 2048**3 / statistics.median(seconds) / 1e9


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="names; all by default")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.families) - set(FAMILIES))
    if unknown:
        parser.error(f"unknown family {unknown[0]!r}; known: {', '.join(FAMILIES)}")
    print(
        f"{'family':<17}{'params':>9}{'tensors':>8}{'compile s':>10}{'steps/s':>9}"
        f"{'state kB':>10}{'temporary kB':>13}{'dataset kB':>11}"
    )
    rows = []
    for name in arguments.families or FAMILIES:
        row = measure(name)
        rows.append(row)
        temporary = row["temporary_bytes"]
        print(
            f"{name:<17}{row['parameters']:>9,}{row['tensors']:>8}"
            f"{row['compile_s']:>10.2f}{row['steps_per_s']:>9,.0f}"
            f"{row['state_bytes'] / 1e3:>10,.0f}"
            f"{'–' if temporary is None else format(temporary / 1e3, ',.0f'):>13}"
            f"{row['dataset_bytes'] / 1e3:>11,.0f}",
            flush=True,
        )
    gflops = product()
    print(f"2048³ product: {gflops:.0f} GFLOP/s; {json.dumps(describe_machine())}")
    if arguments.out:
        about = {"product_gflops": round(gflops, 1), **describe_machine()}
        with arguments.out.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row | about) + "\n")


if __name__ == "__main__":
    main()
