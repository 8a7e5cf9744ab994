"""The machine that a result was produced on, recorded beside every table and figure."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def describe_machine() -> dict[str, Any]:
    """Returns processor, cores, backend and versions, for a report."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "backend": jax.default_backend(),
        "Python": platform.python_version(),
        "JAX": jax.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def product_rate(seconds: float = 0.5, side: int = 2048) -> float:
    """Measures the FLOP/s of a float32 matrix product on the default device.

    Args:
        seconds: total time of the repetitions, compilation not included.
        side: of the square matrices.
    """
    matrix = jnp.full((side, side), 0.5)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    times: list[float] = []
    while sum(times) < seconds:
        begin = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / statistics.median(times)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
