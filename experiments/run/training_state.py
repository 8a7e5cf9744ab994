"""The complete state of a training run: at its start, and from a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command_line import InputError, reported
from experiments.presets.configs import TrainConfig
from experiments.presets.serialization import decode, digest_of, encode
from experiments.run import origin, processes
from experiments.run.memory import check_training
from experiments.run.run_directory import CHECKPOINTS, RunDirectory, read_config
from lopt.base import Theta
from metatrain import devices
from metatrain.checkpoint import Checkpoints, Restored
from metatrain.outer import MetaTraining, OuterState


class Best(NamedTuple):
    """The θ with the smallest validation loss so far."""

    theta: Theta
    loss: jax.Array  # [] normalized; infinite before any validation
    step: jax.Array  # [] int32


class TrainingState(NamedTuple):
    """The contents of a checkpoint."""

    outer: OuterState
    best: Best


def first_state(training: MetaTraining, theta: Theta | None = None) -> TrainingState:
    """Returns the state before the first outer step, with a drawn θ by default."""
    outer = training.init(theta)
    begun = jax.tree.map(jnp.copy, devices.local(outer.theta))
    return TrainingState(outer, Best(begun, jnp.float32(jnp.inf), jnp.int32(0)))


def resume(
    config: TrainConfig,
    training: MetaTraining,
    checkpoints: Checkpoints,
    directory: RunDirectory | None,
    now: dict[str, Any],
) -> TrainingState | None:
    """Returns the state of the newest checkpoint, or None if there is none.

    `now` is the run's `origin`, which later checkpoints are saved with. The first
    process reads the checkpoint and drops what was recorded after it; the others
    receive the same state.

    Raises:
        InputError: if no checkpoint is whole, the newest is of other data, versions or
            settings, or the records do not reach it.
        MemoryError: if the run cannot fit into memory.
    """
    template = jax.eval_shape(lambda: first_state(training))
    check_training(config, training, template.outer)

    def read() -> TrainingState | None:
        assert directory is not None
        with reported():
            checkpoints.recover()
            restored = checkpoints.restore(
                template,
                lambda path, about: origin.check(path, about, now, config.run.despite),
            )
        step = restored.step if restored else 0
        checkpoints.about = (
            origin.continued(restored.about, now, step) if restored else now
        )
        _warn(restored)
        directory.truncate_after(step, _validated(config, step))
        return restored.state if restored else None

    state = processes.on_first(read)
    if processes.several():
        if not processes.from_first(state is not None):
            return None
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        state = devices.broadcast(state or zeros)
    if state is None:
        return None
    return TrainingState(training.place(state.outer), state.best)


class Trained(NamedTuple):
    """A run that was read from its directory."""

    config: TrainConfig
    state: TrainingState
    about: dict[str, Any] | None
    """Origin of the checkpoint; None if it is of a version that kept none."""


def load_trained(path: Path) -> Trained:
    """Reads a run directory's configuration and newest checkpoint.

    Raises:
        InputError: if it is no run directory, is damaged, or has no validated θ yet.
    """
    stored = read_config(path)
    with reported():
        config = decode(TrainConfig, stored, str(path / "config.json"))
        checkpoints = Checkpoints(path / CHECKPOINTS, run=digest_of(encode(config)))
        template = jax.eval_shape(lambda: first_state(config.build()))
        restored = checkpoints.restore(template)
    if restored is None or not np.isfinite(float(restored.state.best.loss)):
        raise InputError(f"{path} has no validated θ yet: run its command again")
    _warn(restored)
    return Trained(config, restored.state, restored.about)


def _warn(restored: Restored | None) -> None:
    for warning in restored.warnings if restored else []:
        print(f"warning: {warning}", file=sys.stderr)


def _validated(config: TrainConfig, step: int) -> list[int]:
    """Returns the steps up to this one after which the run has validated."""
    every, last = config.validation.every, config.num_steps
    return [*range(every, step + 1, every), *([last] if step >= last else [])]
