"""First seconds of commands: `python -m benchmarks.start [NAME ...]`.

Each command runs twice with an empty cache folder at first. Printed are the seconds of
its imports, those from there to its end, and those of them in the compiler (or reading
what it has compiled), summed over threads. Training ends with its first outer step, the
others do all of their work, which for an evaluation is mostly tuning.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.run.environment import describe_machine
from tasks.data.cache import VARIABLE

SMALL = "--sizes 8 16 --num-steps 2 --num-seeds 1"
COMMANDS = {
    "train": "train quickstart --run.stop-after 1 --run.directory {}",
    "coordinate_check": f"coordinate_check mlp --optimizer small_fc {SMALL} "
    "--out-dir {}",
    "evaluate": "evaluate --artifact run/artifact --out-dir {} --cache-dir {}",
}
RELEASE = "train quickstart --num-steps 1 --run.directory run"

PROGRAM = """
import importlib, json, sys, time
from collections import Counter
begin = time.perf_counter()
import jax
command = importlib.import_module("experiments." + sys.argv[1])
imported, seconds = time.perf_counter(), Counter()
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: seconds.update({event: duration})
)
sys.argv = sys.argv[1:]
command.main()
end, compiler = time.perf_counter(), "/jax/core/compile/backend_compile_duration"
print(json.dumps([imported - begin, end - imported, seconds[compiler]]))
"""


def start(command: str, folder: Path, cache: str) -> list[float]:
    """Returns the seconds of imports, of the rest, and in the compiler."""
    root = Path(__file__).parents[1]
    env = os.environ | {VARIABLE: str(folder / cache), "PYTHONPATH": str(root)}
    run = [sys.executable, "-c", PROGRAM, *command.split()]
    output = subprocess.check_output(run, cwd=folder, env=env, text=True)
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Measures the named commands, by default all."""
    parser = argparse.ArgumentParser(description="First seconds of commands")
    parser.add_argument("names", nargs="*", metavar="NAME", default=[*COMMANDS])
    names = parser.parse_args().names
    print(json.dumps(describe_machine()))
    print(f"{'command':18} {'start':>6} {'import':>7} {'rest':>7} {'compiler':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start(RELEASE, folder, "other")
        for command in names:
            for which in ("first", "second"):
                given = COMMANDS[command].replace("{}", f"{command}-{which}")
                imports, rest, compiler = start(given, folder, f"cache-{command}")
                print(
                    f"{command:18} {which:>6} {imports:7.1f} {rest:7.1f} "
                    f"{compiler:9.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
