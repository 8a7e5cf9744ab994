"""A model against simulated readers: `python -m experiments.diagnose [--field value]`.

Trains a small network to grade speckle images of livers, with Adam or with a learned
optimizer, and compares it on the test patients with six simulated readers in two
sessions: AUC per dichotomy with intervals and paired tests, kappas of agreement. Writes
diagnosis.json and .png.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configuration.fields import configuration, later
from configuration.ranges import check_range
from evaluation.diagnosis.reader_study import Study, diagnose, image_logits, train
from evaluation.diagnosis.readers import PANEL, read_panel
from evaluation.diagnosis.report import plot_study, text_report
from evaluation.report.plots import png
from experiments import command_line
from experiments.command_line import InputError, check_folder, reported
from experiments.presets.checks import require_positive
from experiments.run import compilation_cache
from experiments.run.memory import check_run
from experiments.run.results import write_results
from lopt.base import LearnedOptimizer, Theta
from lopt.baselines import Adam
from lopt.release.artifact import Artifact
from tasks.data.speckle import Speckle
from tasks.diagnosis import GradedDiagnosis
from tasks.models.convolutional import ConvNet

_SHOWN = 4
"""Images of each grade in the figure, of different patients."""


@configuration
class DiagnoseConfig:
    """A reader study."""

    data: Speckle = Speckle()
    """The patients and their images."""
    model: ConvNet = ConvNet(width=16, base_width=16, strides=(2, 2, 1))
    """The network."""
    batch_size: int = 64
    """Images per batch."""
    num_steps: int = 300
    """Training steps."""
    learning_rate: float = 4e-3
    """Adam's first learning rate; it decays to 0 on a cosine."""
    artifact: Path | None = None
    """Folder of a learned optimizer to use instead of Adam."""
    num_sessions: int = 2
    """Times that each reader grades every patient."""
    num_resamples: int = 1000
    """Resamples of each bootstrap."""
    seed: int = 0
    """Seed of training, readers and bootstraps; the data has its own."""
    out_dir: Path = Path("runs/diagnosis")
    """Output folder."""
    compilation_cache: bool = later(True)
    """Keep compiled programs in the cache folder, for the next start."""

    def __post_init__(self) -> None:
        for name, interval in (
            ("num_steps", "[1, 1e8)"),
            ("num_sessions", "[1, 1e4]"),
            ("num_resamples", "[1, 1e6]"),
            ("seed", "[0, 2147483648)"),
        ):
            check_range(name, getattr(self, name), interval)
        if self.num_resamples < 100:
            raise ValueError(
                f"num_resamples = {self.num_resamples} must be at least 100: the ends "
                "of a 95 % interval are its 2.5th and 97.5th percentiles"
            )
        require_positive(self, "learning_rate")


def optimizer(config: DiagnoseConfig) -> tuple[LearnedOptimizer, Theta, Any]:
    """Returns the optimizer, its θ, and its parametrization."""
    if config.artifact is not None:
        artifact = Artifact.load(config.artifact)
        return artifact.optimizer, artifact.theta, artifact.optimizer.rules
    rules = config.model.rules
    adam = Adam(config.learning_rate, schedule="cosine", rules=rules)
    return adam, adam.init(jax.random.key(0)), rules


def study(config: DiagnoseConfig) -> tuple[Study, dict[str, float]]:
    """Trains the model, lets the readers grade, and returns the study and losses."""
    lopt, theta, rules = optimizer(config)
    model = config.model.with_rules(rules)
    task = GradedDiagnosis(model, config.data, config.batch_size)
    check_run(task, lopt, config.num_steps)
    dataset = task.load_data()
    params, losses = train(task, lopt, theta, config.num_steps, config.seed, dataset)
    whole = task.whole(dataset, "outer_valid")
    valid, _ = jax.jit(task.loss)(params, jax.random.key(0), whole)
    patients = config.data.patients("test")
    views = config.data.images_per_patient
    readings = read_panel(PANEL, patients.appearance, config.num_sessions, config.seed)
    record = Study(
        patients.grade,
        readings,
        image_logits(task, params, dataset, "test"),
        np.repeat(np.arange(len(patients.grade)), views),
        patients.appearance,
    )
    return record, {
        "chance": task.loss_at_chance,
        "first batch": float(losses[0]),
        "last 20 batches": float(losses[-20:].mean()),
        "outer_valid": float(valid),
    }


def examples(data: Speckle) -> list[np.ndarray]:
    """Returns training images of each grade, of different patients, `[k, h, w]`."""
    split = data.load().train
    pixels, labels = np.asarray(split.images)[..., 0], np.asarray(split.labels)
    views = data.images_per_patient
    of_grade = [np.flatnonzero(labels == g)[::views] for g in range(data.num_classes)]
    return [pixels[rows[:_SHOWN]] for rows in of_grade]


def run(config: DiagnoseConfig) -> None:
    """Runs the study, prints its tables and writes its results."""
    begin = time.monotonic()
    with reported():
        config.out_dir.mkdir(parents=True, exist_ok=True)
        record, losses = study(config)
    if not np.isfinite(record.image_logits).all():
        raise InputError("training diverged: use a smaller learning rate")
    result = diagnose(record, config.num_resamples, config.seed)
    named = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    print(f"loss in nats a dichotomy: {named}\n")
    print(text_report(result))
    print()
    write_results(
        config.out_dir,
        "diagnosis.json",
        config,
        {"unit": "patient", "losses": losses, "result": dataclasses.asdict(result)},
        {
            "diagnosis.png": png(
                plot_study(record, result, examples(config.data)), dpi=110
            )
        },
    )
    print(f"took {time.monotonic() - begin:.0f} s")


def main() -> None:
    """Command line."""
    program = "python -m experiments.diagnose"
    config = command_line.parse(DiagnoseConfig, program, sys.argv[1:])
    check_folder("--artifact", config.artifact)
    compilation_cache.use(config.compilation_cache)
    run(config)


if __name__ == "__main__":
    command_line.run(main)
