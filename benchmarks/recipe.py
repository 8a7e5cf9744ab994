"""The recipe of a paper on one device: `python -m benchmarks.recipe [--quick]`.

μLO_S (arXiv:2406.00153, Section 5): small_fc of 32 units on an MLP of three hidden
layers of 128 over 32×32×3 images in 1,000 classes, batch 4,096, 8 pairs, windows of 50
steps, 5,000 outer steps. The images are noise of the shape of ImageNet's: speed does
not depend on what is in them. Printed are seconds per outer step, how much of what this
device can do that is (products and copies are measured in the same run), and the
projected hours of the whole recipe. Data fetching and resets are in it; validations are
not.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.synthetic import Synthetic
from evaluation.cost import flop_per_step, flop_per_update
from lopt import SmallFC
from lopt.per_parameter.precision import Precision
from metatrain import PES, EpisodeLengths, MetaTraining, OuterOptimizer
from metatrain.inner import Precisions
from parametrization import ADAM_LIKE
from tasks import MLP, ImageClassification

OUTER_STEPS = 5000

PRECISIONS: tuple[tuple[Precision, Precision], ...] = (
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("bfloat16", "bfloat16"),
)
"""Precisions of inner models and of features."""


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Returns the median seconds of `repeats` calls, after one that compiles."""
    jax.block_until_ready(work())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def ceilings(side: int, megabytes: int) -> dict[str, float]:
    """Measures matrix products, TFLOP/s by dtype, and copies, TB/s of bytes moved."""
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        matrix = jnp.full((side, side), 0.5, dtype)
        product = jax.jit(jnp.matmul)
        seconds = median_seconds(lambda m=matrix, p=product: p(m, m), 10)
        name = f"product_{jnp.dtype(dtype).name}_tflops"
        found[name] = 2e-12 * side**3 / seconds
    numbers = jnp.zeros(megabytes * 2**18, jnp.float32)
    add = jax.jit(lambda x: x + 1.0)
    seconds = median_seconds(lambda: add(numbers), 10)
    found["copy_tbytes"] = 2e-12 * numbers.nbytes / seconds
    return found


def build(
    precision: Precision, feature_precision: Precision, *, quick: bool
) -> tuple[MetaTraining, Any]:
    """Builds the recipe, or a small one that a CPU runs in a minute, and its task."""
    width, batch, classes, rows = (
        (16, 64, 10, 1000) if quick else (128, 4096, 1000, 1_281_167)
    )
    task = ImageClassification(
        MLP((width,) * 3, base_width=width),
        Synthetic((32, 32, 3), classes, rows),
        batch_size=batch,
    )
    training = MetaTraining.on(
        task,
        SmallFC(hidden_size=32, rules=ADAM_LIKE),
        PES(
            num_pairs=2 if quick else 8,
            truncation=5 if quick else 50,
            lengths=EpisodeLengths(100, 1000),
        ),
        OuterOptimizer(),
        OUTER_STEPS,
        precision=Precisions(precision, feature_precision),
    )
    return training, task


def measure(
    precision: Precision, feature_precision: Precision, steps: int, *, quick: bool
) -> dict[str, Any]:
    """Measures the recipe with inner models and features in these precisions."""
    training, task = build(precision, feature_precision, quick=quick)
    data = {0: jax.device_put(task.load_data())}
    begin = time.perf_counter()
    state, metrics = training.step(training.init(), data)
    jax.block_until_ready(metrics)
    first, seconds = time.perf_counter() - begin, []
    for _ in range(steps):
        begin = time.perf_counter()
        state, metrics = training.step(state, data)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begin)
    step = statistics.median(seconds)
    model, _ = flop_per_step(task)
    update, _ = flop_per_update(task, training.lopt)
    inner = training.inner_steps_per_step
    return {
        "precision": precision,
        "feature_precision": feature_precision,
        "seconds_per_outer_step": step,
        "inner_steps_per_second": inner / step,
        "first_update_seconds": first,
        "tflop_of_models": 1e-12 * inner * model,
        "tflop_of_updates": 1e-12 * inner * update,
        "tflops": 1e-12 * inner * (model + update) / step,
        "projected_hours": OUTER_STEPS * step / 3600,
    }


def describe(row: dict[str, Any], limits: dict[str, float]) -> str:
    """Returns one line of the table, the share of the measured product last."""
    limit = limits[f"product_{row['precision']}_tflops"]
    return (
        f"{row['precision']:<8}  features {row['feature_precision']:<8}  "
        f"{row['seconds_per_outer_step']:>9.4f} s/outer step  "
        f"{row['inner_steps_per_second']:>9,.0f} inner steps/s  first update "
        f"{row['first_update_seconds']:>5.1f} s  models {row['tflop_of_models']:.3g} + "
        f"updates {row['tflop_of_updates']:.3g} TFLOP  {OUTER_STEPS:,} outer steps: "
        f"{row['projected_hours']:.3g} h  {row['tflops']:.3g} TFLOP/s = "
        f"{100 * row['tflops'] / limit:.1f} % of a product's"
    )


def main() -> None:
    """Prints the ceilings and the table; appends JSON lines if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="its shape, very small")
    parser.add_argument("--steps", type=int, default=10, help="outer steps timed")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    arguments = parser.parse_args()
    quick = arguments.quick
    limits = ceilings(512 if quick else 8192, 16 if quick else 1024)
    device = jax.devices()[0]
    print(f"{device.device_kind}, {platform.machine()}, JAX {jax.__version__}")
    print(", ".join(f"{name} {value:.4g}" for name, value in limits.items()))
    for precision, feature_precision in PRECISIONS:
        row = measure(precision, feature_precision, arguments.steps, quick=quick)
        print(describe(row, limits), flush=True)
        if arguments.out:
            row |= limits | {"device": device.device_kind, "jax": jax.__version__}
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
