"""Meta-training: `python -m experiments.train PRESET [--lopt NAME] [--field value]`.

The run directory holds everything; the same command goes on where an interrupted run
stopped, and the result is the same bits as without the interruption.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.run import mean_loss
from experiments import command_line, processes, run_directory
from experiments.command_line import InputError, reported
from experiments.configs import PRESETS, TrainConfig, with_optimizer
from experiments.display import TrainingDisplay
from experiments.optimizers import OPTIMIZERS, take_optimizer
from experiments.run_directory import METRICS, TIMING, VALIDATION, RunDirectory
from experiments.serialization import decode, encode
from lopt.artifact import FILES, Artifact
from lopt.base import Theta
from metatrain import devices, streaming
from metatrain.checkpoint import Checkpoints
from metatrain.outer import MetaTraining, OuterState
from metatrain.streaming import Feed, HostDataset
from tasks.base import Dataset
from tasks.modelled import ModelTask

FIRST_SEED = 2000
"""Validation runs have the seeds from here on; evaluations use others."""


class Best(NamedTuple):
    """The θ with the smallest validation loss so far."""

    theta: Theta
    loss: jax.Array  # [] normalized; infinite before any validation
    step: jax.Array  # [] int32


class TrainingState(NamedTuple):
    """What a checkpoint holds."""

    outer: OuterState
    best: Best


@dataclasses.dataclass
class _Interrupt:
    """Set by a signal; training stops, with a checkpoint, after the step it is in."""

    requested: bool = False


@contextmanager
def _stop_on_signals() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()

    def handle(number: int, frame: Any) -> None:
        del number, frame
        interrupt.requested = True
        os.write(2, b"\nstopping after this step, with a checkpoint\n")
        processes.tell_to_stop()

    old = {s: signal.signal(s, handle) for s in processes.own_signals()}
    try:
        yield interrupt
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def train(config: TrainConfig, name: str) -> Path:
    """Runs or continues meta-training, and releases the best θ as an artifact.

    Args:
        config: the resolved configuration.
        name: of the preset; the default run directory is runs/`name`.

    Returns:
        The run directory.

    Raises:
        InputError: if the directory is in use, unwritable or of another configuration.
        SystemExit: with code 130 after an interruption, which loses nothing.
    """
    path = config.run.directory or Path("runs") / name
    with processes.run_directory(path) as directory:
        encoded = encode(config)
        processes.check_equal(encoded, "configuration")
        processes.on_first(lambda: directory.claim(encoded))
        with reported():
            per_process = 1 if jax.default_backend() == "cpu" else None
            mesh = devices.make_mesh(config.run.devices or per_process)
            training = config.build(mesh)
            datasets = [
                data if isinstance(data, HostDataset) else devices.replicate(data, mesh)
                for group in config.distribution.groups
                for data in [streaming.load(group.task, stream=config.run.stream)]
            ]
        checkpoints = Checkpoints(directory.checkpoints, config.run.keep_checkpoints)
        state = _start_or_resume(training, checkpoints, directory)
        if int(state.outer.step) < config.num_steps:
            state = _advance(config, training, datasets, state, checkpoints, directory)
        else:
            print(f"{directory.path} is trained: {config.num_steps} outer steps")
        if int(state.outer.step) >= config.num_steps:
            processes.on_first(lambda: _release(config, directory, state))
        return directory.path


def _start_or_resume(
    training: MetaTraining, checkpoints: Checkpoints, directory: RunDirectory
) -> TrainingState:
    template = jax.eval_shape(lambda: _first_state(training))

    def read() -> TrainingState | None:
        with reported():
            restored = checkpoints.restore(template)
        for warning in restored.warnings if restored else []:
            print(f"warning: {warning}", file=sys.stderr)
        directory.truncate_after(restored.step if restored else 0)
        return restored.state if restored else None

    state = processes.on_first(read)
    if processes.several():  # what the first has read is what all go on with
        if not int(devices.broadcast(np.int32(state is not None))):
            return _first_state(training)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        state = devices.broadcast(state or zeros)
    if state is None:
        return _first_state(training)
    return TrainingState(training.place(state.outer), state.best)


def _first_state(training: MetaTraining) -> TrainingState:
    outer = training.init()
    theta = jax.tree.map(jnp.copy, devices.local(outer.theta))
    return TrainingState(outer, Best(theta, jnp.float32(jnp.inf), jnp.int32(0)))


def _advance(
    config: TrainConfig,
    training: MetaTraining,
    datasets: list[Dataset | HostDataset],
    state: TrainingState,
    checkpoints: Checkpoints,
    directory: RunDirectory,
) -> TrainingState:
    """Outer steps until the end, `stop_after` or a signal; each of them checkpoints."""
    first = int(state.outer.step)
    last = min(config.num_steps, config.run.stop_after or config.num_steps)
    display = TrainingDisplay(first, config.num_steps, training.inner_steps_per_step)
    recorder = _Recorder(config, directory, display)
    outer, best = state
    if first:
        print(f"{directory.path}: going on from step {first}")
    tasks = [group.task for group in config.distribution.groups]
    programs = f", {len(tasks)} groups" if len(tasks) > 1 else ""
    print(f"compiling the outer step (seconds, once{programs})", flush=True)
    feed = Feed(training, tasks, datasets)
    pace = processes.Pace(training.mesh is not None)
    with feed, display, _stop_on_signals() as interrupt:
        for step in range(first + 1, last + 1):
            outer, metrics = training.step(outer, feed.at(step - 1))
            pace.after(metrics)
            recorder.add(step, metrics)
            if step % config.validation.every == 0 or step == config.num_steps:
                recorder.flush()
                if processes.is_first():
                    best = _validate(config, datasets, outer, best, recorder)
                display.restart_clock()
            # Asked once: a signal may come any time.
            interrupted = processes.stops_after(step, interrupt.requested)
            if interrupted or step == last or step % config.run.checkpoint_every == 0:
                recorder.flush()
                whole = devices.gather(TrainingState(outer, best), training.mesh)
                with reported():
                    processes.on_first(partial(checkpoints.save, step, whole))
                display.restart_clock()
            if interrupted and step < config.num_steps:
                display.say(f"interrupted at step {step}; the same command goes on")
                raise SystemExit(command_line.INTERRUPTED)
    return TrainingState(outer, best)


class _Recorder:
    """Collects metrics on the device and writes them a few at a time."""

    def __init__(
        self, config: TrainConfig, directory: RunDirectory, display: TrainingDisplay
    ) -> None:
        self.config, self.directory, self.display = config, directory, display
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._clock = time.monotonic()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keeps one step's metrics; the device is waited for only now and then."""
        self._pending.append((step, metrics))
        if step == 1 or step % self.config.run.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending and shows the last of it."""
        if not self._pending:
            return
        rows: list[dict[str, Any]] = [
            {"step": step} | {name: _number(x) for name, x in sorted(metrics.items())}
            for step, metrics in self._pending
        ]
        self._pending.clear()
        self.directory.append(METRICS, rows)
        now = time.monotonic()
        timing = {"step": rows[-1]["step"], "seconds": round(now - self._clock, 3)}
        self.directory.append(TIMING, [timing])
        self._clock = now
        self.display.update(
            rows[-1]["step"], float(np.mean([row["meta_loss"] for row in rows]))
        )


def _number(value: jax.Array) -> float | None:
    """A metric as JSON has it: null if it is not finite."""
    return float(value) if np.isfinite(float(value)) else None


def _validate(
    config: TrainConfig,
    datasets: list[Dataset | HostDataset],
    outer: OuterState,
    best: Best,
    recorder: _Recorder,
) -> Best:
    validation, groups = config.validation, config.distribution.groups
    # The first process validates alone, on one device.
    outer = devices.local(outer._replace(estimator_states=()))
    losses = np.array(
        [
            mean_loss(
                group.task,
                config.lopt,
                outer.average,
                validation.num_steps,
                range(FIRST_SEED, FIRST_SEED + validation.num_seeds),
                dataset if isinstance(dataset, HostDataset) else devices.local(dataset),
            )
            for group, dataset in zip(groups, datasets, strict=True)
        ]
    )
    weights = np.array([group.weight for group in groups])
    held_out, train_loss = np.average(losses, 0, weights)
    loss = held_out if validation.figure == "held_out" else train_loss
    better = float(loss) < float(best.loss)
    row = {
        "step": int(outer.step),
        "held_out_loss": float(held_out),
        "train_loss": float(train_loss),
        "chosen": better,
    }
    if len(groups) > 1:
        for group, pair in zip(groups, losses, strict=True):
            row[f"held_out_loss/{group.name}"] = float(pair[0])
            row[f"train_loss/{group.name}"] = float(pair[1])
    recorder.directory.append(VALIDATION, [row])
    recorder.display.say(
        f"step {row['step']:>5}: validation loss: training {float(train_loss):.4f}, "
        f"held out {float(held_out):.4f}{', best so far' if better else ''}"
    )
    if better:
        # Copies: the outer state's own buffers are donated to the next step.
        return Best(
            jax.tree.map(jnp.copy, outer.average),
            jnp.float32(loss),
            jnp.copy(outer.step),
        )
    return best


def _release(
    config: TrainConfig, directory: RunDirectory, state: TrainingState
) -> None:
    folder = directory.path / "artifact"
    artifact = make_artifact(config, state)
    if folder.is_dir() and not folder.is_symlink():
        foreign = sorted({path.name for path in folder.iterdir()} - set(FILES))
        if foreign:
            print(f"{folder} also holds {', '.join(foreign)}: it is left as it is")
            return
        try:
            if Artifact.load(folder).provenance == artifact.provenance:
                return
        except ValueError as error:
            print(f"warning: {error}; it is released anew", file=sys.stderr)
    elif os.path.lexists(folder):
        raise InputError(f"{folder} is not a folder of this run; move it away")
    with reported():
        artifact.save(folder, replace=True)
    print(f"released {folder} (θ of step {int(state.best.step)})")


def make_artifact(config: TrainConfig, state: TrainingState) -> Artifact:
    """The optimizer of the best validated θ, with its provenance."""
    tasks = [group.task for group in config.distribution.groups]
    bases = [t.model.base_sizes if isinstance(t, ModelTask) else {} for t in tasks]
    # Only what all groups agree on is the base of the optimizer.
    sizes = dict(set(bases[0].items()).intersection(*(base.items() for base in bases)))
    return Artifact(
        config.lopt,
        state.best.theta,
        base=sizes,
        provenance={
            "config": {k: v for k, v in encode(config).items() if k != "run"},
            "outer_steps": int(state.outer.step),
            "best_step": int(state.best.step),
            "validation_figure": config.validation.figure,
            "validation_loss": float(state.best.loss),
            "jax": jax.__version__,
            "platform": f"{platform.system()} {platform.machine()}",
            "backend": jax.default_backend(),
        },
    )


def load_trained(path: Path) -> tuple[TrainConfig, TrainingState]:
    """Reads a run directory's configuration and newest checkpoint.

    Raises:
        InputError: if it is none, is damaged, or has no validated θ yet.
    """
    stored = run_directory.read_config(path)
    with reported():
        config = decode(TrainConfig, stored, str(path / "config.json"))
        checkpoints = Checkpoints(path / "checkpoints", config.run.keep_checkpoints)
        template = jax.eval_shape(lambda: _first_state(config.build()))
        restored = checkpoints.restore(template)
    if restored is None or not np.isfinite(float(restored.state.best.loss)):
        raise InputError(f"{path} has no validated θ yet: train it further first")
    for warning in restored.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return config, restored.state


def main() -> None:
    """Command line."""
    program = "python -m experiments.train"
    meeting, arguments = processes.take_meeting(sys.argv[1:])
    lopt, arguments = take_optimizer(arguments)
    if {"-h", "--help"} & set(arguments):
        print(
            f"--lopt NAME puts another optimizer into a preset: {', '.join(OPTIMIZERS)}"
        )
        print(
            "--coordinator HOST:PORT --num-processes N --process-id I: this is one of "
            "N processes that train together"
        )
    presets = PRESETS if lopt is None else with_optimizer(PRESETS, lopt)
    name, config = command_line.choose_preset(presets, program, arguments)
    processes.join(meeting, config.run.hosts, config.run.devices)
    path = train(config, name)
    print(f"run directory: {path}")


if __name__ == "__main__":
    processes.run(main)
