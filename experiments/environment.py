"""On what a result was produced: recorded beside every table and figure."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import jax


def describe_machine() -> dict[str, Any]:
    """Processor, cores, backend and versions, for a report."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "backend": jax.default_backend(),
        "Python": platform.python_version(),
        "JAX": jax.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
