"""Which θ is released: runs on `outer_valid`, on seeds that nothing else uses.

They are on the groups of tasks that are trained on, or on the cells of a named suite: a
small one of what the optimizer is for chooses better than what it was trained on.
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
"""Validation runs have the seeds from here on; evaluations use others."""


class Problem(NamedTuple):
    """One task of a validation."""

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
        """Prepares them.

        Args:
            config: of the run.
            base: sizes of the base model that its groups agree on.
            datasets: of its groups.

        Raises:
            InputError: if the suite is unknown, or none of its cells can run here.
        """
        self._config = config
        steps = config.validation.num_steps
        if config.validation.suite is None:
            self._problems = [
                Problem(group.name, group.task, group.weight, steps, dataset)
                for group, dataset in zip(
                    config.distribution.groups, datasets, strict=True
                )
            ]
        else:
            self._problems = _of_suite(config, base, steps)

    def row(self, theta: Theta) -> dict[str, Any]:
        """Normalized losses of θ: means by weight, and those of each problem."""
        config = self._config.validation
        losses = np.array(
            [
                mean_loss(
                    problem.task,
                    self._config.lopt,
                    theta,
                    problem.num_steps,
                    range(FIRST_SEED, FIRST_SEED + config.num_seeds),
                    problem.dataset
                    if isinstance(problem.dataset, HostDataset)
                    else devices.local(problem.dataset),
                )
                for problem in self._problems
            ]
        )
        weights = np.array([problem.weight for problem in self._problems])
        held_out, train_loss = np.average(losses, 0, weights)
        row = {"held_out_loss": float(held_out), "train_loss": float(train_loss)}
        if len(self._problems) > 1:
            for problem, pair in zip(self._problems, losses, strict=True):
                row[f"held_out_loss/{problem.name}"] = float(pair[0])
                row[f"train_loss/{problem.name}"] = float(pair[1])
        return row


def _of_suite(config: TrainConfig, base: dict[str, int], steps: int) -> list[Problem]:
    """The cells of the configuration's suite that can run here, all of weight 1."""
    assert config.validation.suite is not None
    whole = find_suite(config.validation.suite)
    suite, skipped = runnable(whole, Artifact(config.lopt, {}, base, {}))
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
        length = min(cell.num_steps, steps)
        problems.append(Problem(cell.name, task, 1.0, length, data))
    return problems
