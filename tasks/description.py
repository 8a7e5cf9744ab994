"""Whether the data of a task is on this machine, and which contents it has."""

from __future__ import annotations

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


def fingerprint(task: Task) -> str | None:
    """Returns what tells two contents of one name apart; None if there is one.

    Raises:
        ValueError: if the data is missing.
    """
    return None if task.source is None else task.source.fingerprint()
