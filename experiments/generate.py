"""Pictures from captions: `python -m experiments.generate [--field.sub value ...]`.

Trains the three stages of the text-to-image family in turn, with Adam or with a learned
optimizer from --artifact, and draws samples of every class beside reproductions of
test images. Writes samples.png and generate.json.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import jax

from configuration.fields import configuration, later
from configuration.ranges import check_range
from evaluation.generation.plots import plot_pictures
from evaluation.generation.scores import draw_pictures, train_stages
from evaluation.report.plots import png
from experiments import command_line
from experiments.command_line import check_folder, reported
from experiments.run import compilation_cache
from experiments.run.memory import check_run
from experiments.run.results import write_results
from lopt.base import LearnedOptimizer, Theta
from lopt.baselines import Adam
from lopt.release.artifact import Artifact
from tasks.data.shapes import Shapes
from tasks.generation.pipeline import Sampling
from tasks.generation.prior import SemanticPrior


@configuration
class GenerateConfig:
    """Training of the three stages, and the pictures to draw."""

    task: SemanticPrior = SemanticPrior()
    """Stage C, which holds stage B, which holds stage A and the data. Their settings
    for pretraining are ignored."""
    num_steps: tuple[int, int, int] = (2000, 3000, 4000)
    """Training steps of stages A, B and C."""
    learning_rates: tuple[float, float, float] = (2e-3, 2e-3, 2e-3)
    """Adam's first learning rate in stages A, B and C; it decays to 0 on a cosine."""
    artifact: Path | None = None
    """Folder of a learned optimizer to use instead of Adam."""
    sampling: Sampling = Sampling()
    """Settings of the samplers."""
    num_samples: int = 10
    """Pictures of each class."""
    seed: int = 0
    """Seed of training and sampling."""
    out_dir: Path = Path("runs/generate")
    """Output folder."""
    compilation_cache: bool = later(True)
    """Keep compiled programs in the cache folder, for the next start."""

    def __post_init__(self) -> None:
        for index, steps in enumerate(self.num_steps):
            check_range(f"num_steps[{index}]", steps, "[1, 1e8)")
        if not all(math.isfinite(r) and r > 0 for r in self.learning_rates):
            raise ValueError(f"learning_rates = {self.learning_rates} must be positive")
        check_range("num_samples", self.num_samples, "[1, 1e4]")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed = {self.seed} must lie in [0, 2³¹)")


def optimizer(
    config: GenerateConfig,
) -> tuple[LearnedOptimizer, tuple[Theta, Theta, Theta]]:
    """Returns the optimizer, and its θ for each stage."""
    if config.artifact is not None:
        artifact = Artifact.load(config.artifact)
        return artifact.optimizer, (artifact.theta,) * 3
    adam = Adam(schedule="cosine", rules=config.task.model.rules)
    a, b, c = (
        {"learning_rate": jax.numpy.float32(rate)} for rate in config.learning_rates
    )
    return adam, (a, b, c)


def captions(config: GenerateConfig) -> list[str]:
    """Returns the captions of the classes, or `class N` where the data has none."""
    data = config.task.stage_b.stage_a.data
    if isinstance(data, Shapes):
        return list(data.captions)
    return [f"class {label}" for label in range(data.num_classes)]


def run(config: GenerateConfig) -> None:
    """Trains the stages, draws pictures and writes the results."""
    with reported():
        config.out_dir.mkdir(parents=True, exist_ok=True)
        lopt, thetas = optimizer(config)
        names = captions(config)
        stage_b = config.task.stage_b
        for task, num_steps in zip(
            (stage_b.stage_a, stage_b, config.task), config.num_steps, strict=True
        ):
            check_run(task, lopt, num_steps)
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
    results = {"seconds": round(time.perf_counter() - begin, 1), "losses": losses}
    write_results(
        config.out_dir, "generate.json", config, results, {"samples.png": figure}
    )


def main() -> None:
    """Command line."""
    program = "python -m experiments.generate"
    config = command_line.parse(GenerateConfig, program, sys.argv[1:])
    check_folder("--artifact", config.artifact)
    compilation_cache.use(config.compilation_cache)
    run(config)


if __name__ == "__main__":
    command_line.run(main)
