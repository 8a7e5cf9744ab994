"""Families, distributions and suites by name, and descriptions of their tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from evaluation.cost import Cost, Role, cost, roles
from evaluation.report.text_table import text_table
from experiments.command_line import InputError, suggestion
from tasks import description
from tasks.base import Task
from tasks.distributions import DISTRIBUTIONS
from tasks.groups import TaskDistribution
from tasks.registry import FAMILIES, NAMED, Family
from tasks.suites import SUITES, Suite

LIST = "python -m experiments.tasks list"
NO_DATA = "its data is not here"


class Entry(NamedTuple):
    """A task with its title."""

    title: str
    task: Task
    about: str
    """Axis and horizon, or weight and variation."""


class Described(NamedTuple):
    """A task with its cost and the roles of its parameters."""

    entry: Entry
    cost: Cost | None
    roles: list[Role]
    problem: str | None
    """Reason why it cannot be described, or cannot run, on this machine."""


def inventory() -> dict[str, dict[str, str]]:
    """Returns descriptions by kind and name."""
    return {
        "families": {n: _of_family(n, family) for n, family in NAMED.items()},
        "distributions": {n: d.description for n, d in DISTRIBUTIONS.items()},
        "suites": {n: _of_suite(suite) for n, suite in SUITES.items()},
    }


def _of_family(name: str, family: Family) -> str:
    # Only prepared data can be missing; making the other tasks takes a while.
    missing = name not in FAMILIES and description.missing_data(family.task())
    return f"{family.description} ({NO_DATA})" if missing else family.description


def _of_suite(suite: Suite) -> str:
    tasks = [cell.task for cell in suite.cells]
    text = f"{suite.description}; {len(tasks)} cells"
    missing = sum(description.missing_data(task) is not None for task in tasks)
    unknown = sum(description.undescribed(task) is not None for task in tasks)
    if missing:
        text += f", the data of {missing} is not here"
    if unknown:
        text += f", {unknown} cannot be described without it"
    return text


def entries(name: str) -> list[Entry]:
    """Returns the tasks of the families, distributions and suites of a name.

    Raises:
        InputError: if there is none.
    """
    found = []
    if name in NAMED:
        found.append(Entry(name, NAMED[name].task(), NAMED[name].description))
    if name in DISTRIBUTIONS:
        found += entries_of(DISTRIBUTIONS[name].make())
    if name in SUITES:
        for cell in SUITES[name].cells:
            about = f"{cell.axis}, {cell.num_steps:,} steps"
            note = f"; {cell.note}" if cell.note else ""
            found.append(Entry(cell.name, cell.task, about + note))
    if found:
        return found
    close = suggestion(name, [*NAMED, *DISTRIBUTIONS, *SUITES])
    raise InputError(
        f"NAME = {name!r} is no family, distribution or suite; `{LIST}` prints them"
        f"{close}"
    )


def entries_of(distribution: TaskDistribution) -> list[Entry]:
    """Returns the tasks of a distribution."""
    return [
        Entry(g.name, g.task, f"weight {g.weight:g}, {g.variation.summary}")
        for g in distribution.groups
    ]


def describe(entry: Entry, measured_to: int = 0) -> Described:
    """Describes a task, or says why it cannot be described without its data.

    Args:
        entry: the task.
        measured_to: most parameters to initialize, for the RMS of each tensor.
    """
    problem = description.undescribed(entry.task)
    if problem:
        return Described(entry, None, [], problem)
    missing = description.missing_data(entry.task)
    found = cost(entry.task)
    measured = found.parameters <= measured_to
    return Described(entry, found, roles(entry.task, measured=measured), missing)


def as_text(described: Described) -> str:
    """Returns a description for a terminal."""
    entry, found, parameters, problem = described
    task = entry.task
    lines = [
        f"{entry.title}  ({entry.about})",
        f"  {type(task).__name__}, {task.family} on {task.data_name}; "
        f"loss in {task.unit}",
    ]
    if problem:
        lines.append(f"  cannot {'run' if found else 'be described'} here: {problem}")
    if found is None:
        return "\n".join(lines)
    batch = getattr(task, "batch_size", None)
    per_batch = f", batch {batch:,}" if batch else ""
    data = "not known" if found.dataset_bytes is None else size(found.dataset_bytes)
    lines += [
        f"  input {task.resolution}{per_batch}",
        f"  {found.parameters:,} parameters in {found.tensors} "
        f"tensor{'s' * (found.tensors != 1)}, "
        f"{with_prefix(found.flop_per_step)}FLOP per step ({found.flop_source})",
        f"  memory: parameters {size(found.parameter_bytes)}, gradients "
        f"{size(found.gradient_bytes)}, state of Adam {size(found.adam_bytes)}, of "
        f"small_fc {size(found.small_fc_bytes)}, activations about "
        f"{size(found.activation_bytes)}, batch {size(found.batch_bytes)}; "
        f"data {data}",
        *(f"  {line}" for line in _table(parameters)),
    ]
    return "\n".join(lines)


def _table(parameters: Sequence[Role]) -> list[str]:
    header = ("parameter", "axes", "kind", "shape", "base shape")
    header += ("fan-in ratio", "step ×", "forward ×")
    measured = any(role.init_rms is not None for role in parameters)
    lines: list[tuple[str, ...]] = [
        (
            role.path if role.count == 1 else f"{role.path} ({role.count})",
            role.axes,
            role.kind,
            "×".join(map(str, role.shape)) or "scalar",
            "×".join(map(str, role.base_shape)) or "scalar",
            f"{role.fan_in_ratio:g}",
            f"{role.step_scale:g}",
            "–" if role.forward_scale is None else f"{role.forward_scale:g}",
        )
        for role in parameters
    ]
    if measured:
        header += ("init RMS",)
        starts = [f"{role.init_rms:.2g}" for role in parameters]
        lines = [(*line, start) for line, start in zip(lines, starts, strict=True)]
    return text_table([header, *lines], grouped=False)


def as_json(described: Described) -> dict[str, Any]:
    """Returns a description as JSON values."""
    entry, found, parameters, problem = described
    task = entry.task
    known = found is not None
    return {
        "name": entry.title,
        "about": entry.about,
        "task": type(task).__name__,
        "family": task.family,
        "data": task.data_name,
        "input": task.resolution if known else None,
        "unit": task.unit,
        "problem": problem,
        "cost": dataclasses.asdict(found) if found else None,
        "parameters": [dataclasses.asdict(role) for role in parameters],
    }


def with_prefix(value: float) -> str:
    """Returns three digits and a prefix of the unit that follows: `1.33 M`."""
    for power, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {prefix}"
    return f"{value:g} "


def size(num_bytes: int) -> str:
    """Returns bytes as `1.33 MB`."""
    return f"{with_prefix(num_bytes)}B"
