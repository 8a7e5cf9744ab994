"""The whole workflow: `make quickstart`.

Meta-trains the quickstart preset, releases the best θ, evaluates it against tuned
baselines and writes a report. Finished steps are skipped, interrupted ones continue.
"""

from __future__ import annotations

from pathlib import Path

from experiments import command_line
from experiments.evaluate import Evaluate, evaluate
from experiments.presets.configs import QUICKSTART
from experiments.run import compilation_cache
from experiments.train import train


def main() -> None:
    """Trains, releases, evaluates and reports into runs/quickstart."""
    compilation_cache.use(QUICKSTART.run.compilation_cache)
    print("1/2  meta-training (python -m experiments.train quickstart)")
    directory = train(QUICKSTART, "quickstart")
    artifact = directory / "artifact"
    print(f"2/2  evaluation (python -m experiments.evaluate --artifact {artifact})")
    report = evaluate(
        Evaluate(artifact, cache_dir=Path("runs/cache")), "make quickstart"
    )
    print(f"artifact: {artifact}\nreport:   {report}")


if __name__ == "__main__":
    command_line.run(main)
