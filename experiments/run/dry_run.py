"""Preview of a run without running it: `experiments.train PRESET --dry-run`.

Shows, for each task group, its parameters and the FLOP of an inner step; the parts of
θ; the memory of the complete state; and the expected hours. Nothing is trained, written
or compiled. Whatever would stop the run at its start is an error here too.

The hours are an estimate: FLOP are counted, the rate of a large matrix product is
measured, and the fraction of that rate at which meta-training runs is assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from evaluation.cost import flop_per_update, tree_bytes
from experiments.command_line import InputError, reported
from experiments.presets.configs import TrainConfig
from experiments.presets.inventory import (
    Described,
    as_text,
    describe,
    entries_of,
    size,
    with_prefix,
)
from experiments.presets.suites import find_suite
from experiments.run.environment import product_rate
from experiments.run.memory import check_training
from experiments.run.warm_start import begin_with
from lopt.base import Theta, frozen_parts
from lopt.per_parameter.forms import precisions
from lopt.release.artifact import Artifact
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.outer import MetaTraining, OuterState
from tasks.description import missing_data, undescribed

FLAG = "--dry-run"

FRACTIONS = {"cpu": (0.05, 0.5)}
"""Fractions of the product's rate at which meta-training may run, by backend.

On CPUs benchmarks/meta_training measured .08 (an MLP of 2,410 parameters, a network of
4 units) to .4 (427,658 parameters, 32 units)."""

ELSEWHERE = (0.005, 0.3)
"""Fractions on other backends, where launches bound small networks: not measured."""

MEASURED_TO = 2**22
"""Most parameters of a group that is initialized to show the RMS of each tensor."""


@dataclasses.dataclass(frozen=True)
class GroupWork:
    """Arithmetic of one task group."""

    name: str
    task_flop: float
    """FLOP of a batch's loss and gradient."""
    update_flop: float
    """FLOP of the optimizer's update."""
    inner_steps: float
    """Inner steps per outer step, over all particles; expected, if groups are drawn."""
    source: str
    """Counter of the FLOP: XLA or a formula."""

    @property
    def flop(self) -> float:
        """FLOP of an inner step of one particle."""
        return self.task_flop + self.update_flop


def take_flag(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Takes `--dry-run` out of a command line: whether it was there, and the rest."""
    return FLAG in arguments, [word for word in arguments if word != FLAG]


def report(config: TrainConfig, name: str) -> str:
    """Returns all that is known of a run before it begins.

    Raises:
        InputError: if the run could not begin here.
    """
    with reported():
        training, entries = config.build(), entries_of(config.distribution)
        for entry in entries:
            problem = undescribed(entry.task) or missing_data(entry.task)
            if problem:
                raise InputError(f"{entry.title}: {problem}")
        state = jax.eval_shape(training.init)
        check_training(config, training, state)
        _check_beginning(config, state.theta)
        groups = [describe(entry, MEASURED_TO) for entry in entries]
        work = group_work(config, training, groups)
    lines = [f"dry run of {name}: nothing is trained, nothing is written", ""]
    for group, its in zip(groups, work, strict=True):
        lines += [as_text(group), f"  {_inner_step(its)}", ""]
    lines += [*_theta(config, state), "", *_memory(config, groups, state), ""]
    return "\n".join(lines + _time(config, training, work))


def _check_beginning(config: TrainConfig, theta: Theta) -> None:
    if config.validation.suite is not None:
        find_suite(config.validation.suite, "--validation.suite")
    if config.init_from is not None:
        artifact = Artifact.load(config.init_from)
        begin_with(artifact, config.lopt, theta, config.init_from)


def group_work(
    config: TrainConfig, training: MetaTraining, groups: Sequence[Described]
) -> list[GroupWork]:
    """Returns the FLOP of every group.

    An objective on another split costs one more forward pass, a third of a step.
    Differentiating an unroll costs about twice the unroll, and rematerialization the
    unroll once more.
    """
    passes = 1
    if isinstance(config.estimator, Backpropagation):
        passes = 4 if config.estimator.remat else 3
    one_drawn = training.each_step == "one"
    weights = [group.weight if one_drawn else 1.0 for group in training.groups]
    forward = 0.0 if config.objective.split == "train" else 1 / 3
    found = []
    for group, weight in zip(groups, weights, strict=True):
        assert group.cost is not None
        update, source = flop_per_update(group.entry.task, config.lopt)
        sources = dict.fromkeys([group.cost.flop_source, source])
        found.append(
            GroupWork(
                group.entry.title,
                passes * (1 + forward) * group.cost.flop_per_step,
                passes * update,
                weight / sum(weights) * training.inner_steps_per_step,
                " and ".join(sources),
            )
        )
    return found


def _inner_step(work: GroupWork) -> str:
    return (
        f"inner step: {with_prefix(work.flop)}FLOP, {with_prefix(work.task_flop)} of "
        f"the task and {with_prefix(work.update_flop)} of the optimizer ({work.source})"
    )


def _theta(config: TrainConfig, state: OuterState) -> list[str]:
    parts = state.theta if isinstance(state.theta, dict) else {"θ": state.theta}
    numbers = {name: _numbers(part) for name, part in parts.items()}
    frozen = frozen_parts(config.lopt)
    return [
        f"θ of {type(config.lopt).__name__}: {sum(numbers.values()):,} numbers in "
        f"{len(parts)} part{'s' * (len(parts) != 1)}",
        *(
            f"  {name}: {number:,}{' (frozen)' * (name in frozen)}"
            for name, number in numbers.items()
        ),
    ]


def _memory(
    config: TrainConfig, groups: Sequence[Described], state: OuterState
) -> list[str]:
    members = config.estimator.num_members
    lines = [
        f"memory: {size(tree_bytes(state))} of state",
        f"  θ {size(tree_bytes(state.theta))}, its running average "
        f"{size(tree_bytes(state.average))}, outer optimizer "
        f"{size(tree_bytes(state.outer_opt_state))}",
    ]
    for group, its in zip(groups, state.estimator_states, strict=True):
        known = group.cost.dataset_bytes if group.cost else None
        data = "not known before it is read" if known is None else size(known)
        lines.append(
            f"  {group.entry.title}: estimator {size(tree_bytes(its))} ({members} "
            f"particles), data {data}{' on the host' * config.run.stream}"
        )
    return lines


def _time(
    config: TrainConfig, training: MetaTraining, work: Sequence[GroupWork]
) -> list[str]:
    per_step = sum(its.inner_steps * its.flop for its in work)
    total = per_step * config.num_steps
    validation, inner = config.validation, training.inner_steps_per_step
    count = -(-config.num_steps // validation.every)
    validated = count * validation.num_seeds * config.validation_steps * len(work)
    backend, rate = jax.default_backend(), product_rate()
    low, high = FRACTIONS.get(backend, ELSEWHERE)
    least, most = (_duration(total / (fraction * rate)) for fraction in (high, low))
    return [
        f"work: {inner:,} inner steps and {with_prefix(per_step)}FLOP an outer step, "
        f"{with_prefix(total)}FLOP in {config.num_steps:,} outer steps",
        f"  validation is another {validated / (inner * config.num_steps):.1%} of the "
        "inner steps",
        f"precision of products: inner models {config.precision}, features "
        f"{_feature_precision(config)}",
        f"expected: {least} to {most}, without validation and compilation",
        f"  assumed: meta-training runs at {low:g} to {high:g} of the rate of a 2048³ "
        f"float32 product, which is {with_prefix(rate)}FLOP/s here and now ({backend})",
    ]


def _feature_precision(config: TrainConfig) -> str:
    """Names the precisions in which the optimizer's networks will compute."""
    if config.feature_precision != "float32":
        return config.feature_precision
    # At float32 the optimizer keeps its own precision.
    found = sorted(precisions(config.lopt))
    return " and ".join(found) or f"{config.feature_precision} (no network)"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s ({seconds / 3600:.2g} h)"
    if seconds < 3600:
        return f"{seconds / 60:.2g} min ({seconds / 3600:.2g} h)"
    return f"{seconds / 3600:.3g} h"


def _numbers(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
