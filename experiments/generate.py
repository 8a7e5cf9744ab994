"""Pictures from captions: `python -m experiments.generate [--field.sub value ...]`.

Trains the three stages of the text-to-image family one after the other, with Adam or
with a learned optimizer from --artifact, and draws samples of every class beside
reproductions of pictures of the test split. Writes samples.png and generate.json.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import jax
import numpy as np

from configuration.fields import configuration
from configuration.files import write_text
from evaluation.generation import draw_pictures, plot_pictures, train_stages
from evaluation.report.plots import png
from experiments import command_line
from experiments.command_line import InputError, reported
from experiments.presets.serialization import encode
from experiments.run.environment import describe_machine
from lopt.base import LearnedOptimizer, Theta
from lopt.baselines import Adam
from lopt.release.artifact import Artifact
from tasks.data.shapes import Shapes
from tasks.generation.pipeline import Sampling
from tasks.generation.prior import SemanticPrior

PROGRAM = "python -m experiments.generate"
STAGES = "ABC"


@configuration
class GenerateConfig:
    """One training of the three stages, and what is drawn."""

    task: SemanticPrior = SemanticPrior()
    """Stage C, which holds stage B, which holds stage A and the data; how earlier
    stages are pretrained does not matter here."""
    num_steps: tuple[int, int, int] = (2000, 3000, 4000)
    """Training steps of stages A, B and C."""
    learning_rates: tuple[float, float, float] = (2e-3, 2e-3, 2e-3)
    """Adam's first learning rate in stages A, B and C; it falls to 0 along a cosine."""
    artifact: Path | None = None
    """Folder of a trained optimizer, to use in place of Adam."""
    sampling: Sampling = Sampling()
    """How pictures are drawn."""
    num_samples: int = 10
    """Pictures of each class."""
    seed: int = 0
    """Of training and of the samples."""
    out_dir: Path = Path("runs/generate")
    """Where the figure and the numbers go."""

    def __post_init__(self) -> None:
        if min(self.num_steps) < 1:
            raise ValueError(f"num_steps = {self.num_steps} must be positive")
        if not all(math.isfinite(r) and r > 0 for r in self.learning_rates):
            raise ValueError(f"learning_rates = {self.learning_rates} must be positive")
        if self.num_samples < 1:
            raise ValueError(f"num_samples = {self.num_samples} must be positive")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed = {self.seed} must lie in [0, 2³¹)")


def optimizer(
    config: GenerateConfig,
) -> tuple[LearnedOptimizer, tuple[Theta, Theta, Theta]]:
    """The optimizer, and its θ for each stage.

    Raises:
        ValueError: if the artifact is damaged.
    """
    if config.artifact is not None:
        artifact = Artifact.load(config.artifact)
        return artifact.optimizer, (artifact.theta,) * 3
    adam = Adam(schedule="cosine", rules=config.task.model.rules)
    a, b, c = (
        {"learning_rate": jax.numpy.float32(rate)} for rate in config.learning_rates
    )
    return adam, (a, b, c)


def captions(config: GenerateConfig) -> list[str]:
    """Names of the classes, where the data has names."""
    data = config.task.stage_b.stage_a.data
    if isinstance(data, Shapes):
        return list(data.captions)
    return [f"class {label}" for label in range(data.num_classes)]


def run(config: GenerateConfig) -> None:
    """Trains, draws and writes."""
    with reported():
        config.out_dir.mkdir(parents=True, exist_ok=True)
        lopt, thetas = optimizer(config)
        names = captions(config)
        begin = time.perf_counter()

        def report(line: str) -> None:
            print(f"{line}; {time.perf_counter() - begin:.0f} s so far", flush=True)

        stages, losses = train_stages(
            config.task, lopt, thetas, config.num_steps, config.seed, report
        )
        pictures = draw_pictures(
            config.task, stages, config.sampling, config.num_samples, config.seed
        )
        report("pictures drawn")
        figure = png(plot_pictures(pictures, names), dpi=90)
        (config.out_dir / "samples.png").write_bytes(figure)
        record = {
            "config": encode(config),
            "machine": describe_machine(),
            "seconds": round(time.perf_counter() - begin, 1),
            "losses": {
                letter: [float(x) if np.isfinite(x) else None for x in values]
                for letter, values in losses.items()
            },
        }
        write_text(config.out_dir / "generate.json", json.dumps(record) + "\n")
    print(f"wrote samples.png and generate.json to {config.out_dir}")


def main() -> None:
    """Command line."""
    config = command_line.parse(GenerateConfig, PROGRAM, sys.argv[1:])
    if config.artifact is not None and not config.artifact.is_dir():
        raise InputError(f"--artifact {config.artifact} is not a folder")
    run(config)


if __name__ == "__main__":
    command_line.run(main)
