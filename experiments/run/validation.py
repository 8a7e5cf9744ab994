"""Validation of θ on `outer_valid`, with seeds that nothing else uses.

It chooses the θ that is released. The runs are on the task groups of the training, or
on the cells of a named suite: a small suite close to the optimizer's purpose chooses
better than the tasks that it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation.plan import parametrize, runnable
from evaluation.run import mean_loss
from experiments.command_line import InputError, reported
from experiments.presets.configs import TrainConfig
from experiments.presets.suites import find_suite
from lopt.base import Theta
from lopt.release.artifact import Artifact
from metatrain import devices, streaming
from metatrain.streaming import HostDataset
from tasks.base import Dataset, Task

FIRST_SEED = 2000
"""First seed of the validation runs; evaluations use others."""


class Problem(NamedTuple):
    """A task of a validation."""

    name: str
    task: Task
    weight: float
    num_steps: int
    dataset: Dataset | HostDataset


class Validation:
    """Validation runs of one training run."""

    def __init__(
        self,
        config: TrainConfig,
        base: dict[str, int],
        datasets: Sequence[Dataset | HostDataset],
    ) -> None:
        """Prepares the tasks, with the groups' datasets and common base sizes.

        Raises:
            InputError: if the suite is unknown, or one of its cells cannot run here.
        """
        self._config = config
        steps = config.validation_steps
        if config.validation.suite is not None:
            self._problems = _of_suite(config, config.validation.suite, base)
        else:
            groups = zip(config.distribution.groups, datasets, strict=True)
            self._problems = [
                Problem(group.name, group.task, group.weight, steps, dataset)
                for group, dataset in groups
            ]

    def row(self, theta: Theta) -> dict[str, Any]:
        """Returns the normalized losses of θ: weighted means, and each task's."""
        config = self._config.validation
        seeds = range(FIRST_SEED, FIRST_SEED + config.num_seeds)
        found = []
        for problem in self._problems:
            data = problem.dataset
            data = data if isinstance(data, HostDataset) else devices.local(data)
            lopt, steps = self._config.lopt, problem.num_steps
            found.append(mean_loss(problem.task, lopt, theta, steps, seeds, data))
        losses = np.array(found)
        weights = np.array([problem.weight for problem in self._problems])
        held_out, train_loss = np.average(losses, 0, weights)
        row = {"held_out_loss": float(held_out), "train_loss": float(train_loss)}
        if len(self._problems) > 1:
            for problem, pair in zip(self._problems, losses, strict=True):
                row[f"held_out_loss/{problem.name}"] = float(pair[0])
                row[f"train_loss/{problem.name}"] = float(pair[1])
        return row


def _of_suite(config: TrainConfig, name: str, base: dict[str, int]) -> list[Problem]:
    """Returns the cells of a suite, with equal weights."""
    suite, skipped = runnable(
        find_suite(name, "--validation.suite"), Artifact(config.lopt, {}, base, {})
    )
    if skipped:
        raise InputError(
            f"--validation.suite {suite.name}: {len(skipped)} of its cells cannot run "
            f"here; the first, {skipped[0].cell!r}: {skipped[0].reason}"
        )
    problems = []
    for cell in suite.cells:
        task = parametrize(cell.task, config.lopt.rules, base.get("width"))
        with reported():
            data = streaming.load(task, stream=config.run.stream)
        length = min(cell.num_steps, config.validation_steps)
        problems.append(Problem(cell.name, task, 1.0, length, data))
    return problems
