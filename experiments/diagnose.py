"""A model against simulated readers: `python -m experiments.diagnose [--field value]`.

Trains a small network to grade speckle images of livers, with Adam or with a learned
optimizer, has the test patients graded by six simulated readers in two sessions, and
compares them: AUC per dichotomy with intervals and paired tests, kappas of agreement.
Writes diagnosis.json and .png.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configuration.fields import configuration
from configuration.files import write_text
from evaluation.diagnosis.reader_study import Study, diagnose, image_logits, train
from evaluation.diagnosis.readers import PANEL, read_panel
from evaluation.diagnosis.report import plot_study, text_report
from evaluation.report.plots import png
from experiments import command_line
from experiments.command_line import reported
from experiments.presets.serialization import encode
from experiments.run.environment import describe_machine
from lopt.base import LearnedOptimizer, Theta
from lopt.baselines import Adam
from lopt.release.artifact import Artifact
from tasks.data.speckle import Speckle
from tasks.diagnosis import GradedDiagnosis
from tasks.models.convolutional import ConvNet

PROGRAM = "python -m experiments.diagnose"
_SHOWN = 4
"""Images of each grade in the figure, of different patients."""


@configuration
class DiagnoseConfig:
    """One study."""

    data: Speckle = Speckle()
    """The patients and their images."""
    model: ConvNet = ConvNet(width=16, base_width=16, strides=(2, 2, 1))
    """The network."""
    batch_size: int = 64
    """Images per batch."""
    num_steps: int = 300
    """Steps of training."""
    learning_rate: float = 4e-3
    """Of Adam, which decays to zero along a cosine."""
    artifact: Path | None = None
    """Folder of a trained optimizer, to be used in place of Adam."""
    num_sessions: int = 2
    """How often each reader grades every patient."""
    num_resamples: int = 1000
    """Of each bootstrap."""
    seed: int = 0
    """Of training, readers and bootstraps; data has its own."""
    out_dir: Path = Path("runs/diagnosis")
    """Where the figure and the numbers go."""

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("num_sessions", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} = {getattr(self, name)} must be at least {least}"
                )
        if self.num_resamples < 100:
            raise ValueError(
                f"num_resamples = {self.num_resamples} must be at least 100: the ends "
                "of a 95 % interval are its 2.5th and 97.5th percentiles"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate = {self.learning_rate} must be positive")


def optimizer(config: DiagnoseConfig) -> tuple[LearnedOptimizer, Theta, Any]:
    """The optimizer, its θ, and the parametrization that goes with it.

    Raises:
        ValueError: if the artifact is damaged.
    """
    if config.artifact is not None:
        artifact = Artifact.load(config.artifact)
        return artifact.optimizer, artifact.theta, artifact.optimizer.rules
    rules = config.model.rules
    adam = Adam(config.learning_rate, schedule="cosine", rules=rules)
    return adam, adam.init(jax.random.key(0)), rules


def study(config: DiagnoseConfig) -> tuple[Study, dict[str, float]]:
    """Trains, grades and reads; and the losses of training and validation."""
    lopt, theta, rules = optimizer(config)
    model = config.model.with_rules(rules)
    task = GradedDiagnosis(model, config.data, config.batch_size)
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
    """Some training images of each grade, of different patients, `[k, h, w]`."""
    split = data.load().train
    pixels, labels = np.asarray(split.images)[..., 0], np.asarray(split.labels)
    views = data.images_per_patient
    of_grade = [np.flatnonzero(labels == g)[::views] for g in range(data.num_classes)]
    return [pixels[rows[:_SHOWN]] for rows in of_grade]


def run(config: DiagnoseConfig) -> None:
    """Trains, compares, prints and writes."""
    begin = time.monotonic()
    with reported():
        config.out_dir.mkdir(parents=True, exist_ok=True)
        record, losses = study(config)
    if not np.isfinite(record.image_logits).all():
        raise command_line.InputError("training diverged: use a smaller learning rate")
    result = diagnose(record, config.num_resamples, config.seed)
    named = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    print(f"loss in nats a dichotomy: {named}\n")
    print(text_report(result))
    stored = {
        "config": encode(config),
        "machine": describe_machine(),
        "unit": "patient",
        "losses": losses,
        "result": _storable(dataclasses.asdict(result)),
    }
    with reported():
        figure = png(plot_study(record, result, examples(config.data)), dpi=110)
        (config.out_dir / "diagnosis.png").write_bytes(figure)
        text = json.dumps(stored, allow_nan=False) + "\n"
        write_text(config.out_dir / "diagnosis.json", text)
    seconds = time.monotonic() - begin
    print(f"\nwrote diagnosis.png and .json to {config.out_dir} ({seconds:.0f} s)")


def _storable(value: Any) -> Any:
    """With null for what is not a number: JSON has no other word for it."""
    if isinstance(value, dict):
        return {name: _storable(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_storable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def main() -> None:
    """Command line."""
    config = command_line.parse(DiagnoseConfig, PROGRAM, sys.argv[1:])
    if config.artifact is not None and not config.artifact.is_dir():
        raise command_line.InputError(f"--artifact {config.artifact} is not a folder")
    run(config)


if __name__ == "__main__":
    command_line.run(main)
