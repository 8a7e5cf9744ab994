"""The memory that a run of meta-training needs, before anything is compiled.

The bounds are lower ones, from shapes: they refuse no run that would fit.
"""

from __future__ import annotations

from typing import Any

from evaluation.cost import check_memory, param_shapes, run_bytes, unroll_bytes
from experiments.presets.configs import TrainConfig
from experiments.presets.suites import find_suite
from lopt.base import LearnedOptimizer
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.outer import MetaTraining, OuterState
from tasks.base import Task
from tasks.source import tree_bytes


def check_training(
    config: TrainConfig, training: MetaTraining, state: OuterState
) -> None:
    """Checks that training and validation fit into the memory.

    Args:
        config: the run.
        training: the same, built for its devices.
        state: arrays or shapes.

    Raises:
        MemoryError: in one line, naming the fields to make smaller.
    """
    size = tree_bytes(state)
    check_memory(
        size, "the state of this run", "the model, lopt or the number of particles"
    )
    for group, particles in zip(training.groups, state.estimator_states, strict=True):
        task: Task = group.problem.task
        parts = window_bytes(training, task, particles, stream=config.run.stream)
        # The largest part says which fields matter.
        remedy = max(parts, key=lambda remedy: parts[remedy])
        what = f"an outer step on {group.name}"
        check_memory(size + sum(parts.values()), what, remedy)
    for name, task, num_steps in _validated(config):
        needed = run_bytes(task, config.lopt, num_steps, config.validation.num_seeds)
        check_memory(
            size + needed,
            f"validation on {name}",
            "validation.num_seeds, validation.num_steps, batch_size or the model",
        )


def check_run(task: Task, lopt: LearnedOptimizer, num_steps: int) -> None:
    """Checks that one training run fits into the memory.

    Raises:
        MemoryError: in one line, naming the fields to make smaller.
    """
    needed = run_bytes(task, lopt, num_steps, 1)
    what = f"training a {task.family}"
    check_memory(needed, what, "the model, batch_size or num_steps")


def window_bytes(
    training: MetaTraining, task: Task, particles: Any, *, stream: bool = False
) -> dict[str, int]:
    """Returns the bytes of a window of a group beside the state, by what bounds them.

    Each device works on one chunk of particles at a time. The next state of all is
    written beside the present one.
    """
    estimator = training.estimator
    num_devices = 1 if training.mesh is None else training.mesh.size
    runs = min(estimator.chunk, estimator.particles)
    members = estimator.num_members // estimator.particles
    of_all = tree_bytes(particles)
    of_chunk = of_all * runs // estimator.particles
    kept = 0
    if isinstance(estimator, Backpropagation):
        # The parameters before each step.
        kept = estimator.truncation * runs * tree_bytes(param_shapes(task))
    needed = unroll_bytes(task, 0 if stream else estimator.truncation, runs, members)
    return {
        "the model, lopt or estimator.chunk": of_all + num_devices * of_chunk,
        "batch_size, the model or estimator.chunk": num_devices
        * (needed.layer + needed.batches),
        "batch_size or estimator.truncation": num_devices * needed.draws,
        "estimator.truncation, estimator.chunk or the model": num_devices * kept,
    }


def _validated(config: TrainConfig) -> list[tuple[str, Task, int]]:
    """Returns the tasks of a validation, with names and steps drawn on the device."""
    # Where rows are streamed, the host draws.
    steps = 0 if config.run.stream else config.validation_steps
    if config.validation.suite is None:
        return [(g.name, g.task, steps) for g in config.distribution.groups]
    cells = find_suite(config.validation.suite, "--validation.suite").cells
    return [(c.name, c.task, min(c.num_steps, steps)) for c in cells]
