"""Time of an outer step against size, and of devices that share it.

    python -m benchmarks.scaling [--quick] [--only NAME] [--out FILE] [--plot FILE.png]

Three sizes grow on their own: antithetic pairs, parameters (by the width of the inner
network) and tensors (by its depth). An exponent is fitted by least squares to the
logarithms, over the larger half of the sizes, where overheads no longer count: 1 is
linear. Each point is measured in a process of its own.

Then two CPU devices with one device of all cores: the same pairs in the same chunks,
the two in turn, so that other load of the machine meets both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One setting: an MLP on synthetic 8×8 images, small_fc."""

    pairs: int = 8
    chunk: int = 2
    width: int = 32
    depth: int = 1
    devices: int = 1
    window: int = 20  # inner steps


WIDTHS = (32, 64, 128, 256, 512, 1024, 2048)
AXES: dict[str, tuple[str, list[Case]]] = {
    "pairs": ("pairs", [Case(pairs=n) for n in (2, 4, 8, 16, 32, 64)]),
    "parameters": ("width", [Case(2, width=w) for w in WIDTHS]),
    "tensors": ("depth", [Case(2, depth=d) for d in (1, 2, 4, 8, 16)]),
}
QUICK: dict[str, tuple[str, list[Case]]] = {
    "pairs": ("pairs", [Case(n, 1, 8, window=2) for n in (2, 4)]),
    "parameters": ("width", [Case(1, 1, w, window=2) for w in (8, 16)]),
    "tensors": ("depth", [Case(1, 1, 8, d, window=2) for d in (1, 2)]),
}
SHARED = Case(pairs=8, chunk=4, window=50)


def build(case: Case) -> tuple[Any, Any, int]:
    """Builds the meta-training of a case, its data, and the size of its network.

    Imports are inside to keep the parent process, which only starts cases, light.
    """
    import jax

    from benchmarks.synthetic import Synthetic
    from lopt import SmallFC
    from metatrain import (
        PES,
        EpisodeLengths,
        MetaTraining,
        OuterOptimizer,
        devices,
    )
    from parametrization import ADAM_LIKE
    from tasks import MLP, ImageClassification

    widths = (case.width,) * case.depth
    task = ImageClassification(
        MLP(widths, base_width=case.width), Synthetic((8, 8, 1), num_rows=2000)
    )
    mesh = devices.make_mesh(case.devices)
    training = MetaTraining.on(
        task,
        SmallFC(hidden_size=32, rules=ADAM_LIKE),
        PES(
            num_pairs=case.pairs,
            chunk=case.chunk,
            truncation=case.window,
            lengths=EpisodeLengths(1000, 1000),
        ),
        OuterOptimizer(),
        num_steps=100_000,
        mesh=mesh,
    )
    params = jax.eval_shape(task.init, jax.random.key(0))
    size = sum(x.size for x in jax.tree.leaves(params))
    return training, devices.replicate(task.load_data(), mesh), size


class Runner:
    """A compiled case in this process."""

    def __init__(self, case: Case) -> None:
        """Compiles, and takes one outer step."""
        import jax

        self._block = jax.block_until_ready
        self.training, self.dataset, self.parameters = build(case)
        begin = time.perf_counter()
        self.state = self.training.init()
        self.step()
        self.first = time.perf_counter() - begin

    def step(self) -> float:
        """Takes one outer step, and returns its seconds."""
        begin = time.perf_counter()
        self.state, metrics = self.training.step(self.state, {0: self.dataset})
        self._block((self.state, metrics))
        return time.perf_counter() - begin


def serve(case: Case) -> None:
    """Measures one row for each line of seconds that the parent sends."""
    import jax

    jax.config.update("jax_num_cpu_devices", case.devices)
    runner = Runner(case)
    for line in sys.stdin:
        times, end = [], time.perf_counter() + float(line)
        while len(times) < 3 or time.perf_counter() < end:
            times.append(runner.step())
        row = case._asdict() | {
            "parameters": runner.parameters,
            "seconds_per_step": statistics.median(times),
            "steps": len(times),
            "first_update_seconds": round(runner.first, 2),
        }
        print(json.dumps(row), flush=True)


class Child:
    """A process that measures one case; a context that ends it."""

    def __init__(self, case: Case) -> None:
        """Starts the process."""
        command = [sys.executable, "-m", "benchmarks.scaling", "--case"]
        self._process = subprocess.Popen(
            [*command, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Child:
        """Returns the running process."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the process."""
        self._process.communicate()

    def measure(self, seconds: float) -> dict[str, Any]:
        """Measures one row; the other children rest meanwhile."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a case has ended with {self._process.wait()}")
        return json.loads(line)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Fits the slope of log seconds against log size over the larger half."""
    half = len(sizes) // 2 if len(sizes) > 3 else 0
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def grow(axis: str, field: str, cases: list[Case], seconds: float) -> dict[str, Any]:
    """Measures one axis and prints its table."""
    rows = []
    print(f"\n{axis:>10}  ms per outer step  per {axis.removesuffix('s')}, µs")
    for case in cases:
        with Child(case) as child:
            row = child.measure(seconds)
        # A layer has two tensors, and the readout too.
        tensors = 2 * case.depth + 2
        row["size"] = {
            "pairs": case.pairs,
            "parameters": row["parameters"],
            "tensors": tensors,
        }[axis]
        rows.append(row)
        each = row["seconds_per_step"] / row["size"] * 1e6
        print(
            f"{row['size']:>10,}  {row['seconds_per_step'] * 1e3:>17.2f}  {each:>12.2f}"
        )
    slope = exponent(
        [row["size"] for row in rows], [row["seconds_per_step"] for row in rows]
    )
    part = "the larger half" if len(rows) > 3 else "all"
    print(f"time ∝ {axis}^{slope:.2f} over {part} ({field} grows)")
    return {"axis": axis, "exponent": round(slope, 3), "rows": rows}


def share(case: Case, seconds: float, rounds: int) -> dict[str, Any]:
    """Compares two devices with one that has the same cores, in turn."""
    times: dict[str, list[float]] = {"one": [], "two": []}
    with Child(case) as one, Child(case._replace(devices=2)) as two:
        for _ in range(rounds):
            for name, child in (("one", one), ("two", two)):
                times[name].append(child.measure(seconds)["seconds_per_step"])
    ratios = [two / one for one, two in zip(*times.values(), strict=True)]
    loss = 100.0 * (statistics.median(ratios) - 1.0)
    one, two = (1e3 * statistics.median(values) for values in times.values())
    print(
        f"\ntwo CPU devices against one, {len(os.sched_getaffinity(0))} cores: "
        f"{two:.1f} ms and {one:.1f} ms per outer step, loss {loss:+.1f} % "
        f"(medians of {rounds}, of the ratio for itself; negative is a gain)"
    )
    return {"axis": "devices", "loss_percent": round(loss, 2), "ratios": ratios}


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Plots a panel for each axis, with the line of the fitted exponent."""
    from matplotlib.figure import Figure

    grown = [result for result in results if "rows" in result]
    figure = Figure(figsize=(4.2 * len(grown), 3.6))
    panels = figure.subplots(1, len(grown), squeeze=False)[0]
    for axes, result in zip(panels, grown, strict=True):
        sizes = np.array([row["size"] for row in result["rows"]], float)
        times = np.array([row["seconds_per_step"] for row in result["rows"]])
        axes.loglog(sizes, times * 1e3, "o-", color="#0072B2")
        axes.loglog(
            sizes,
            times[-1] * 1e3 * (sizes / sizes[-1]),
            "--",
            color="#999999",
            label="linear",
        )
        axes.set_title(f"time ∝ {result['axis']}^{result['exponent']:.2f}", loc="left")
        axes.set_xlabel(result["axis"])
        axes.set_xticks(sizes[::2], [f"{size:,.0f}" for size in sizes[::2]])
        axes.minorticks_off()
        axes.legend(fontsize=8)
    panels[0].set_ylabel("ms per outer step")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures everything, prints tables; files only where asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny: that it runs")
    parser.add_argument("--seconds", type=float, default=5.0, help="per point")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--plot", type=Path, help="picture to write")
    parser.add_argument("--only", choices=[*AXES, "devices"], help="one of the tables")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        serve(Case(*json.loads(arguments.case)))
        return
    quick, seconds, only = arguments.quick, arguments.seconds, arguments.only
    if quick:
        seconds = 0.1
    results = [
        grow(axis, field, cases, seconds)
        for axis, (field, cases) in (QUICK if quick else AXES).items()
        if only in (None, axis)
    ]
    if only in (None, "devices"):
        shared = Case(2, 1, 8, window=2) if quick else SHARED
        results.append(share(shared, seconds, 2 if quick else 7))
    about = {"machine": platform.machine(), "cores": os.cpu_count()}
    about["date"] = time.strftime("%Y-%m-%d")
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(r | about) + "\n" for r in results))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
