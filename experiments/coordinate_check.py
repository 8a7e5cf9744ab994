"""Coordinate checks: `python -m experiments.coordinate_check PRESET [--field value]`.

Trains a family at several widths (or depths) for a few steps and prints, for each
parametrization, how far the activations of every layer moved, and the log-log slope of
that against the size: near 0 over widths in μP, and over depths in CompleteP. For a
learned optimizer the slopes of its input features are shown too. Writes
coordinate_check.json and .png.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from configuration.fields import configuration, later
from configuration.ranges import check_range
from evaluation.report.plots import png
from evaluation.scaling.coordinate_check import CoordinateCheck, coordinate_check
from evaluation.scaling.feature_check import FeatureCheck, HasFeatures, feature_check
from evaluation.scaling.plots import TOLERANCE, plot_coordinates, plot_features
from experiments import command_line
from experiments.command_line import check_folder, reported
from experiments.presets.checks import require_positive
from experiments.presets.families import on_families
from experiments.presets.optimizers import OPTIMIZERS, named
from experiments.run import compilation_cache
from experiments.run.memory import check_run
from experiments.run.results import write_results
from lopt.base import LearnedOptimizer, Theta
from lopt.baselines import SGD, Adam
from lopt.learned.mlp_lopt import MLPLOpt
from lopt.learned.small_fc import SmallFC
from lopt.per_parameter.epsilons import PAPER, WIDTH_SAFE, Epsilons
from lopt.release.artifact import Artifact
from lopt.release.registry import with_rules
from parametrization.rules import ADAM_LIKE, COMPLETEP, STANDARD, Rules
from tasks.base import BaseTask, Batch, sample
from tasks.modelled import ModelTask

EPSILONS = {"paper": PAPER, "width_safe": WIDTH_SAFE}
COLUMNS: dict[str, dict[str, Rules]] = {
    "width": {"μP": ADAM_LIKE, "standard": STANDARD},
    "depth": {"CompleteP": COMPLETEP, "μP": ADAM_LIKE},
}
"""Parametrizations to compare, by axis."""


@configuration
class CoordinateConfig:
    """A coordinate check."""

    task: BaseTask
    """Task family; its width or depth is replaced by each of the sizes."""
    axis: Literal["width", "depth"] = "width"
    """Dimension of the model that grows."""
    sizes: tuple[int, ...] = (32, 64, 128, 256)
    """Widths or depths."""
    optimizer: str = "adam"
    """adam, sgd, an untrained learned optimizer by the name that experiments.train
    --lopt takes, or artifact: the trained one of --artifact."""
    artifact: Path | None = None
    """Folder of a trained optimizer."""
    epsilons: Literal["own", "paper", "width_safe"] = "own"
    """Epsilons of a learned optimizer: its own or a replacement."""
    learning_rate: float = 1e-2
    """Learning rate of adam and sgd."""
    num_steps: int = 4
    """Training steps on one fixed batch."""
    num_seeds: int = 3
    """Initializations to average over."""
    out_dir: Path | None = None
    """Output folder; by default runs/coordinate_check/PRESET."""
    compilation_cache: bool = later(True)
    """Keep compiled programs in the cache folder, for the next start."""

    def __post_init__(self) -> None:
        if len(set(self.sizes)) < 2 or min(self.sizes) < 1:
            raise ValueError(
                f"sizes = {self.sizes} must be at least two different positive numbers"
            )
        require_positive(self, "learning_rate")
        check_range("num_steps", self.num_steps, "[1, 1e8)")
        check_range("num_seeds", self.num_seeds, "[1, 1e6]")
        if self.optimizer not in (known := ("adam", "sgd", "artifact", *OPTIMIZERS)):
            raise ValueError(f"optimizer = {self.optimizer!r} must be one of {known}")
        if (self.optimizer == "artifact") != (self.artifact is not None):
            raise ValueError(
                f"optimizer = {self.optimizer!r} and artifact = {self.artifact}: a "
                "folder is needed for 'artifact', and for nothing else"
            )
        if not isinstance(self.task, ModelTask):
            kind = type(self.task).__name__
            raise ValueError(f"axis = {self.axis!r}: a {kind} has no {self.axis}")
        if self.task.model.rules is not ADAM_LIKE:
            raise ValueError(
                f"task.model.rules = {self.task.model.rules.name}: leave it; the check "
                f"itself compares {', '.join(COLUMNS[self.axis])}"
            )


def optimizer(config: CoordinateConfig, rules: Rules) -> tuple[LearnedOptimizer, Theta]:
    """Returns the optimizer in a parametrization, and its θ."""
    key = jax.random.key(0)
    if config.optimizer == "adam":
        adam = Adam(config.learning_rate, rules=rules)
        return adam, adam.init(key)
    if config.optimizer == "sgd":
        sgd = SGD(config.learning_rate, rules=rules.for_sgd)
        return sgd, sgd.init(key)
    if config.artifact is not None:
        artifact = Artifact.load(config.artifact)
        lopt, theta = artifact.optimizer, artifact.theta
    else:
        lopt = named(config.optimizer)
        theta = lopt.init(key)
    if config.epsilons != "own":
        lopt = _with_epsilons(lopt, EPSILONS[config.epsilons])
    steps = STANDARD if rules is STANDARD else ADAM_LIKE
    return with_rules(lopt, steps), theta


def _shows_features(lopt: Any) -> bool:
    """Whether one network is applied to every tensor, so that all have inputs."""
    return isinstance(lopt, SmallFC | MLPLOpt)


def _with_epsilons(lopt: Any, epsilons: Epsilons) -> Any:
    if not isinstance(getattr(lopt, "epsilons", None), Epsilons):
        raise ValueError(
            f"epsilons: a {type(lopt).__name__} has none to replace; leave it at own"
        )
    return dataclasses.replace(lopt, epsilons=epsilons)


def resized(config: CoordinateConfig, rules: Rules) -> dict[int, BaseTask]:
    """Returns the task at every size in a parametrization."""
    task = config.task.with_rules(rules)
    grow = task.at_width if config.axis == "width" else task.at_depth
    return {size: grow(size) for size in sorted(set(config.sizes))}


def check(config: CoordinateConfig, rules: Rules, batch: Batch) -> CoordinateCheck:
    """Runs the check in one parametrization."""
    lopt, theta = optimizer(config, rules)
    return coordinate_check(
        resized(config, rules),
        lambda specs: lopt.as_optax(theta, specs, config.num_steps),
        batch,
        config.num_steps,
        tuple(range(config.num_seeds)),
    )


def check_features(config: CoordinateConfig, batch: Batch) -> dict[str, FeatureCheck]:
    """Checks the inputs of a learned optimizer in μP, with the paper's epsilons too."""
    lopt, theta = optimizer(config, ADAM_LIKE)
    assert isinstance(lopt, HasFeatures)
    tasks = resized(config, ADAM_LIKE)
    variants = {
        "paper's floors": (PAPER, False),
        "width-safe floors": (WIDTH_SAFE, False),
        "paper's floors, gradients of the base's size": (PAPER, True),
    }
    return {
        label: feature_check(
            tasks,
            _with_epsilons(lopt, floors),
            theta,
            batch,
            config.num_steps,
            tuple(range(config.num_seeds)),
            unscaled=unscaled,
        )
        for label, (floors, unscaled) in variants.items()
    }


def verdict(title: str, result: CoordinateCheck, axis: str) -> str:
    """Returns a line about the steepest layer.

    Over depths only the residual stream behind all blocks of a stage is judged: the
    change of a single block shrinks with their number, as it should.
    """
    slopes = {n: s for n, s in result.slopes().items() if not math.isnan(s)}
    streams = {
        n: s for n, s in slopes.items() if n in _STREAMS or n.endswith("_stream")
    }
    judged = streams if axis == "depth" and streams else slopes
    if not judged:
        return f"{title}: no layer has moved"
    name = max(judged, key=lambda n: abs(judged[n]))
    if math.isinf(judged[name]):
        return f"{title}: not flat; {name} diverged or moved at some sizes only"
    word = "flat" if abs(judged[name]) < TOLERANCE else "not flat"
    what = "of the residual stream " if judged is streams else ""
    return f"{title}: {word}; steepest slope {what}{judged[name]:+.3f} ({name})"


_STREAMS = ("residual/out", "_stream")


def feature_lines(checks: Mapping[str, FeatureCheck]) -> list[str]:
    """Returns the steepest slope of each statistic of the inputs, by epsilons."""
    lines = []
    for label, result in checks.items():
        worst = []
        for statistic in ("rms", "spread"):
            slopes = result.slopes(statistic)
            # NaN: zero at every width; infinite: zero or not finite at some.
            judged = np.where(np.isnan(slopes), 0.0, np.abs(slopes))
            tensor, feature = np.unravel_index(judged.argmax(), judged.shape)
            worst.append(
                f"{statistic} {slopes[tensor, feature]:+.2f} "
                f"({result.features[feature]} of {result.tensors[tensor]})"
            )
        lines.append(f"inputs, {label}: steepest {', '.join(worst)}")
    return lines


def _numbers(result: CoordinateCheck) -> dict[str, Any]:
    return {
        "sizes": list(result.sizes),
        "slopes": {name: str(x) for name, x in result.slopes().items()},
        "std_of_change": {
            name: result.change[:, :, -1, i].mean(1)
            for i, name in enumerate(result.layers)
        },
    }


def run(config: CoordinateConfig, name: str) -> None:
    """Runs the check, prints its tables and writes its results."""
    out_dir = config.out_dir or Path("runs/coordinate_check") / name
    with reported():
        out_dir.mkdir(parents=True, exist_ok=True)
        if config.artifact is not None:
            # A damaged one is refused before anything is compiled.
            Artifact.load(config.artifact)
        columns = COLUMNS[config.axis]
        for rules in columns.values():
            for task in resized(config, rules).values():
                # The batch is drawn once.
                check_run(task, optimizer(config, rules)[0], num_steps=1)
        batch = sample(config.task, config.task.load_data(), jax.random.key(0))
        checks = {}
        print(f"{name}: {len(columns)} parametrizations at {len(config.sizes)} sizes")
        for title, rules in columns.items():
            checks[title] = check(config, rules, batch)
            print(f"{title} ({rules.name}), after {config.num_steps} steps")
            print(checks[title].table(), end="\n\n", flush=True)
    results: dict[str, Any] = {
        "checks": {title: _numbers(result) for title, result in checks.items()}
    }
    figures = {"coordinate_check.png": png(plot_coordinates(checks, config.axis))}
    lines = [verdict(title, result, config.axis) for title, result in checks.items()]
    if config.axis == "width" and _shows_features(optimizer(config, ADAM_LIKE)[0]):
        features = check_features(config, batch)
        figures["features.png"] = png(plot_features(features))
        lines += feature_lines(features)
        results["inputs"] = {
            label: {
                "tensors": result.tensors,
                "features": result.features,
                **{s: result.slopes(s) for s in ("rms", "spread")},
            }
            for label, result in features.items()
        }
    print("\n".join(lines))
    write_results(out_dir, "coordinate_check.json", config, results, figures)


def main() -> None:
    """Command line."""
    program = "python -m experiments.coordinate_check"
    presets = on_families(CoordinateConfig)
    name, config = command_line.choose_preset(presets, program, sys.argv[1:])
    check_folder("--artifact", config.artifact)
    compilation_cache.use(config.compilation_cache)
    run(config, name)


if __name__ == "__main__":
    command_line.run(main)
