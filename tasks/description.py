"""Whether the data of a task is on this machine, and which contents it has."""

from __future__ import annotations

from typing import Any

from configuration import identity
from tasks.base import Task
from tasks.modelled import ModelTask


def undescribed(task: Task) -> str | None:
    """Returns why the shapes of a task are not known here; None if they are."""
    if not isinstance(task, ModelTask):
        return None
    try:
        _ = task.input_shape, task.num_outputs
    except ValueError as error:
        return str(error)
    return None


def missing_data(task: Task) -> str | None:
    """Returns why the data of a task is not here; None if it is (`Source.missing`)."""
    return None if task.source is None else task.source.missing()


def data_identity(task: Task) -> Any:
    """Returns the identity of a task's data, or of the task if it makes its own.

    Raises:
        UnidentifiedError: if it has none (see `configuration.identity`).
        ValueError: if the data is missing.
    """
    return identity.of(task if task.source is None else task.source)
