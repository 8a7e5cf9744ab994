"""Tensors of zeros under rules whose steps are in units of a tensor's own size.

VeLO and Celo multiply a step by the root mean square of its tensor, so that a tensor of
zeros moves by 3·10⁻⁵ of a step. A readout that starts at zero then hardly moves, and
with it nothing behind it learns. (Biases and shifts start at zero as well, but networks
learn without them.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lopt.base import LearnedOptimizer, follows_size
from parametrization.paths import leaves_by_name, written
from tasks.base import Task

_SHOWN = 3
"""Tensors and tasks that a message names."""


def stuck_tensors(task: Task, lopt: LearnedOptimizer) -> tuple[str, ...]:
    """Returns the matrices of a task that start at zero and hardly move.

    None unless the steps of the optimizer, or of one that it wraps, follow the size of
    their tensor. The task is initialized once to find out.
    """
    if not follows_size(lopt):
        return ()

    @jax.jit
    def drawn(key: jax.Array) -> Any:
        return jax.tree.map(lambda x: jnp.any(x != 0), task.init(key))

    specs = leaves_by_name(task.specs())
    return tuple(
        written(name)
        for name, nonzero in leaves_by_name(drawn(jax.random.key(0))).items()
        if not nonzero and specs[name].kind not in ("vector", "scalar")
    )


def _readouts(task: Task) -> set[str]:
    specs = leaves_by_name(task.specs())
    return {written(name) for name, spec in specs.items() if spec.kind == "output"}


def small_steps_warning(
    lopt: LearnedOptimizer, tasks: Mapping[str, Task]
) -> str | None:
    """Returns a line on the tensors of some tasks that hardly move, or None.

    Args:
        lopt: the optimizer.
        tasks: by the names that the line has for them.
    """
    found = {name: stuck_tensors(task, lopt) for name, task in tasks.items()}
    found = {name: tensors for name, tensors in found.items() if tensors}
    if not found:
        return None
    tensors = dict.fromkeys(tensor for names in found.values() for tensor in names)
    one = len(tensors) == 1
    # The option is about readouts, and may have been given already.
    drawable = any(_readouts(tasks[name]) & set(found[name]) for name in found)
    advice = "; use readout_init='lecun'" if drawable else ""
    return (
        f"{type(lopt).__name__}'s steps scale with a tensor's own size, and "
        f"{len(tensors)} {'tensor starts' if one else 'tensors start'} at zero "
        f"({_listed(tensors)}; in {_listed(found)}): "
        f"{'it hardly moves' if one else 'they hardly move'}{advice}"
    )


def _listed(names: Mapping[str, object]) -> str:
    shown = [*names][:_SHOWN]
    more = ["…"] if len(names) > _SHOWN else []
    return ", ".join(shown + more)
