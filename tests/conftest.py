"""What every test shares: a strict JAX, quick compilation, and a cache of its own."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Subprocesses started by tests inherit the choice; a set variable is respected.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most programs here run once: compiling them is what takes time. Subprocesses inherit
# the variables. Tests about the bits of optimized programs are marked `optimized`:
# `make test-slow` runs them in a process of their own, with METATRAIN_OPTIMIZED=1.
OPTIMIZED = os.environ.get("METATRAIN_OPTIMIZED") == "1"
QUICK = {
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}
# A process whose XLA_FLAGS names an unknown option dies: another one asks first.
ASK = f"from metatrain import compiler; print(*compiler.known_options({QUICK}))"
if not OPTIMIZED and "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    asked = [sys.executable, "-c", ASK]
    known = subprocess.run(asked, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    flags = [f"--{name}={str(QUICK[name]).lower()}" for name in known.decode().split()]
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

# A result must never come from an executable that an earlier checkout compiled.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"

import hypothesis
import jax
import pytest

from tasks.data import cache

pytest_plugins = ["tests.reference_data"]

jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a test compiles, so a deadline would fail by the machine's load;
# the same examples every time, so that a red run can be repeated.
hypothesis.settings.register_profile("metatrain", deadline=None, derandomize=True)
hypothesis.settings.load_profile("metatrain")

# The kernel gives a process 65,530 memory maps, every compiled program holds a few, and
# at the limit the compiler ends the process with a segmentation fault.
MAPS = Path("/proc/self/maps")
MANY_MAPS = 20_000
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs(request):
    """Forgets compiled programs before they are too many for the kernel."""
    yield
    # Counting takes as long as a small test: after each one only where they are large.
    large = request.node.get_closest_marker("slow") is not None
    if not large and next(_tests) % 10:
        return
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


def pytest_runtest_setup(item):
    """Refuses to run tests about optimized programs where none are made."""
    if item.get_closest_marker("optimized") and not OPTIMIZED:
        pytest.skip("programs are compiled quickly here: set METATRAIN_OPTIMIZED=1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or fills the user's cache; the workers of a run share one."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    before = os.environ.get(cache.VARIABLE)
    os.environ[cache.VARIABLE] = str(folder / "cache")
    yield
    os.environ.pop(cache.VARIABLE)
    if before is not None:
        os.environ[cache.VARIABLE] = before
