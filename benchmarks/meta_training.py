"""Inner steps per second of whole outer steps: `python -m benchmarks.meta_training`.

Each case runs in a process of its own, so that its compile time and peak memory are its
own. Both members of every pair are counted, resets and batch gathering included; the
product of two 2048×2048 float32 matrices is timed between the outer steps, and the rate
is also shown scaled to a machine on which that product runs at 282 GFLOP/s, the one on
which google/learned_optimization 32186aa was measured (jax 0.10.2, 2 cores). A row is
measured with one CPU device, which uses all cores, and with two; `experiments.train`
takes two by default there. The results are the same bits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REFERENCE_GFLOPS = 282.0
# (case, optimizer): inner steps/s of the peer where the product runs at 282 GFLOP/s
PEER = {
    ("small", "hidden 32"): 2480,
    ("small", "hidden 4"): 3900,
    ("small", "Adam"): 11600,
    ("big", "hidden 32"): 10,
    ("big", "Adam"): 160,
}


def build(case: str, optimizer: str, num_devices: int = 1) -> tuple[Any, Any]:
    """Builds the meta-training of a case on CPU devices, and its data.

    Imports are inside to keep the parent process, which only starts cases, light.
    """
    from benchmarks.synthetic import Synthetic
    from lopt import Adam, SmallFC
    from metatrain import (
        PES,
        EpisodeLengths,
        MetaTraining,
        Objective,
        OuterOptimizer,
        devices,
    )
    from metatrain.outer import InnerTraining, ProblemGroup
    from parametrization import ADAM_LIKE
    from tasks import MLP, ImageClassification

    shape, widths, window = {
        "small": ((8, 8, 1), (32,), 50),
        "big": ((32, 32, 3), (128, 128, 128), 20),
    }[case]
    task = ImageClassification(MLP(widths, base_width=32), Synthetic(shape))
    if optimizer == "Adam":
        lopt = Adam()
    else:
        lopt = SmallFC(hidden_size=int(optimizer.split()[-1]), rules=ADAM_LIKE)
    mesh = devices.make_mesh(num_devices)
    training = MetaTraining(
        (ProblemGroup(case, InnerTraining(task, lopt, Objective())),),
        lopt,
        PES(truncation=window, lengths=EpisodeLengths(1000, 1000)),
        OuterOptimizer(),
        num_steps=5000,
        mesh=mesh,
    )
    return training, devices.replicate(task.load_data(), mesh)


def measure(
    case: str, optimizer: str, num_devices: int, seconds: float
) -> dict[str, Any]:
    """Measures one row in this process."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_num_cpu_devices", num_devices)
    training, dataset = build(case, optimizer, num_devices)
    matrix = jnp.ones((2048, 2048)) * 0.5
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))

    begin = time.perf_counter()
    state, metrics = training.step(training.init(), {0: dataset})
    jax.block_until_ready(metrics)
    first = time.perf_counter() - begin
    steps, products = [], []
    while sum(steps) < seconds:
        begin = time.perf_counter()
        state, metrics = training.step(state, {0: dataset})
        jax.block_until_ready(metrics)
        steps.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        products.append(time.perf_counter() - begin)
    rate = training.inner_steps_per_step / statistics.median(steps)
    gflops = 2 * 2048**3 / statistics.median(products) / 1e9
    # Linux: RLIMIT's own counter survives exec; VmHWM is this program's alone.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "case": case,
        "optimizer": optimizer,
        "devices": num_devices,
        "inner_steps_per_second": round(rate, 1),
        "product_gflops": round(gflops, 1),
        "scaled_to_282": round(rate * REFERENCE_GFLOPS / gflops, 1),
        "peer_at_282": PEER.get((case, optimizer)),
        "first_update_seconds": round(first, 2),
        "peak_rss_mb": round(peak),
        "outer_steps": len(steps),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "machine": f"{platform.processor() or platform.machine()}",
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Runs every case, prints a table and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="per case")
    parser.add_argument("--only", help="one row, as 'small:hidden 32:2'")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    arguments = parser.parse_args()
    if arguments.only:
        case, optimizer, number = arguments.only.split(":")
        print(json.dumps(measure(case, optimizer, int(number), arguments.seconds)))
        return
    rows = []
    for (case, optimizer), number in itertools.product(PEER, (1, 2)):
        command = [sys.executable, "-m", "benchmarks.meta_training"]
        command += ["--only", f"{case}:{optimizer}:{number}"]
        command += ["--seconds", str(arguments.seconds)]
        output = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(output.stdout.splitlines()[-1]))
        print(describe(rows[-1]), flush=True)
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def describe(row: dict[str, Any]) -> str:
    """Returns one line of the table, the ratio to the peer last."""
    ratio = row["scaled_to_282"] / row["peer_at_282"]
    return (
        f"{row['case']:>5} {row['optimizer']:<10} {row['devices']} "
        f"{'devices' if row['devices'] > 1 else 'device '} "
        f"{row['inner_steps_per_second']:>9,.1f} inner steps/s   "
        f"product {row['product_gflops']:>6.1f} GFLOP/s   "
        f"scaled {row['scaled_to_282']:>9,.1f} /s   "
        f"first update {row['first_update_seconds']:>5.1f} s   "
        f"peak {row['peak_rss_mb']:>5} MB   peer {row['peer_at_282']:>6,} /s   "
        f"× {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
