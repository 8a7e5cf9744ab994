"""Meta-training: `python -m experiments.train PRESET [--lopt NAME] [--field value]`.

The run directory holds everything; the same command goes on where an interrupted run
stopped, and the result is the same bits as without the interruption.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import command_line
from experiments.command_line import InputError, reported
from experiments.optimizers import OPTIMIZERS, take_optimizer
from experiments.presets.configs import (
    PRESETS,
    TrainConfig,
    with_estimator,
    with_optimizer,
)
from experiments.presets.estimators import ESTIMATORS, take_estimator
from experiments.presets.experts import EXPERTS, take_expert, with_expert
from experiments.presets.serialization import decode, differences, encode, identity
from experiments.run import dry_run, processes, run_directory
from experiments.run.display import TrainingDisplay
from experiments.run.recorder import Recorder
from experiments.run.release import Best, TrainingState, base_sizes, release
from experiments.run.run_directory import RunDirectory
from experiments.run.validation import Validation
from experiments.run.warm_start import begin_with, parent_of
from lopt.base import Theta
from lopt.release.artifact import Artifact
from metatrain import devices, streaming
from metatrain.checkpoint import Checkpoints
from metatrain.outer import MetaTraining, OuterState
from metatrain.streaming import Feed, HostDataset
from tasks.base import Dataset


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
        ComputationError: if too many meta-gradients in a row are not finite.
        SystemExit: with code 130 after an interruption, which loses nothing.
    """
    path = config.run.directory or Path("runs") / name
    with processes.run_directory(path) as directory:
        encoded = encode(config)
        processes.check_equal(encoded, "configuration")
        processes.on_first(lambda: directory.claim(encoded))
        run = _prepare(config, directory)
        state = _start_or_resume(run)
        if int(state.outer.step) < config.num_steps:
            state = _advance(run, state)
        else:
            print(f"{directory.path} is trained: {config.num_steps} outer steps")
        if int(state.outer.step) >= config.num_steps:
            processes.on_first(lambda: release(config, directory, state))
        return directory.path


class _Run(NamedTuple):
    """What a run consists of, before its first step."""

    config: TrainConfig
    training: MetaTraining
    datasets: list[Dataset | HostDataset]
    validation: Validation | None  # of the first process
    checkpoints: Checkpoints
    directory: RunDirectory


def _prepare(config: TrainConfig, directory: RunDirectory) -> _Run:
    with reported():
        per_process = config.run.devices
        if per_process is None and jax.default_backend() == "cpu":
            per_process = processes.cpu_devices(
                config.estimator.num_chunks, jax.local_device_count()
            )
        mesh = devices.make_mesh(per_process)
        training = config.build(mesh)
        datasets = [
            data if isinstance(data, HostDataset) else devices.replicate(data, mesh)
            for group in config.distribution.groups
            for data in [streaming.load(group.task, stream=config.run.stream)]
        ]
    validation = None
    if processes.is_first():
        validation = Validation(config, base_sizes(config), datasets)
    checkpoints = Checkpoints(
        directory.checkpoints, config.run.keep_checkpoints, identity(encode(config))
    )
    return _Run(config, training, datasets, validation, checkpoints, directory)


def _start_or_resume(run: _Run) -> TrainingState:
    training = run.training
    template = jax.eval_shape(lambda: _first_state(training))
    _check_size(template)

    def read() -> TrainingState | None:
        with reported():
            run.checkpoints.recover()
            restored = run.checkpoints.restore(template)
        for warning in restored.warnings if restored else []:
            print(f"warning: {warning}", file=sys.stderr)
        step = restored.step if restored else 0
        run.directory.truncate_after(step, _validated(run.config, step))
        return restored.state if restored else None

    state = processes.on_first(read)
    if processes.several():  # what the first has read is what all go on with
        if not int(devices.broadcast(np.int32(state is not None))):
            return _begin(run)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        state = devices.broadcast(state or zeros)
    if state is None:
        return _begin(run)
    return TrainingState(training.place(state.outer), state.best)


def _validated(config: TrainConfig, step: int) -> list[int]:
    """After which steps up to this one the run has validated."""
    every, last = config.validation.every, config.num_steps
    return [*range(every, step + 1, every), *([last] if step >= last else [])]


def _begin(run: _Run) -> TrainingState:
    """The state before the first step, with the θ of an artifact if one is named."""
    folder = run.config.init_from
    if folder is None:
        return _first_state(run.training)
    with reported():
        artifact = Artifact.load(folder)
        fresh = jax.device_get(run.training.init().theta)
        theta, parts = begin_with(artifact, run.config.lopt, fresh, folder)
    for line in differences(encode(artifact.optimizer), encode(run.config.lopt)):
        print(f"warning: {folder} was trained with {line} here", file=sys.stderr)
    parent = parent_of(folder, artifact, parts)
    processes.on_first(lambda: run_directory.write_parent(run.directory.path, parent))
    print(f"beginning with {', '.join(parts)} of {folder}")
    return _first_state(run.training, theta)


def _check_size(template: TrainingState) -> None:
    """Refuses what no such machine can hold, before anything is compiled."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(template))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory * jax.process_count():
        raise InputError(
            f"the state of this run has {size:.1e} bytes, this machine {memory:.1e}: "
            "make the task, the optimizer or the number of particles smaller"
        )


def _first_state(training: MetaTraining, theta: Theta | None = None) -> TrainingState:
    outer = training.init(theta)
    begun = jax.tree.map(jnp.copy, devices.local(outer.theta))
    return TrainingState(outer, Best(begun, jnp.float32(jnp.inf), jnp.int32(0)))


def _advance(run: _Run, state: TrainingState) -> TrainingState:
    """Outer steps until the end, `stop_after` or a signal; each of them checkpoints."""
    config, training = run.config, run.training
    first = int(state.outer.step)
    last = min(config.num_steps, config.run.stop_after or config.num_steps)
    display = TrainingDisplay(first, config.num_steps, training.inner_steps_per_step)
    skipped = processes.on_first(run.directory.skipped_in_a_row)
    if processes.several():
        skipped = int(devices.broadcast(np.int32(skipped or 0)))
    recorder = Recorder(
        config,
        run.directory,
        display,
        training.inner_steps_per_step,
        first,
        skipped or 0,
    )
    outer, best = state
    if first:
        print(f"{run.directory.path}: going on from step {first}")
    tasks = [group.task for group in config.distribution.groups]
    programs = f", {len(tasks)} groups" if len(tasks) > 1 else ""
    print(f"compiling the outer step (seconds, once{programs})", flush=True)
    feed = Feed(training, tasks, run.datasets)
    pace = processes.Pace(training.mesh is not None)
    with feed, display, recorder.sinks, _stop_on_signals() as interrupt:
        for step in range(first + 1, last + 1):
            outer, metrics = training.step(outer, feed.at(step - 1))
            pace.after(metrics)
            recorder.add(step, metrics)
            if step % config.validation.every == 0 or step == config.num_steps:
                recorder.flush()
                if processes.is_first():
                    best = _validate(run, outer, best, recorder)
                display.restart_clock()
            # Asked once: a signal may come any time.
            interrupted = processes.stops_after(step, interrupt.requested)
            if interrupted or step == last or step % config.run.checkpoint_every == 0:
                recorder.flush()
                whole = devices.gather(TrainingState(outer, best), training.mesh)
                with reported():
                    processes.on_first(partial(_save, run, step, whole))
                display.restart_clock()
            if interrupted and step < config.num_steps:
                display.say(f"interrupted at step {step}; the same command goes on")
                raise SystemExit(command_line.INTERRUPTED)
    return TrainingState(outer, best)


def _save(run: _Run, step: int, state: TrainingState) -> None:
    run.checkpoints.save(step, state)
    run.directory.mark_saved()


def _validate(run: _Run, outer: OuterState, best: Best, recorder: Recorder) -> Best:
    assert run.validation is not None
    # The first process validates alone, on one device.
    outer = devices.local(outer._replace(estimator_states=()))
    scores = run.validation.row(outer.average)
    figure = run.config.validation.figure
    loss = scores["held_out_loss" if figure == "held_out" else "train_loss"]
    better = loss < float(best.loss)
    row = {"step": int(outer.step)} | scores | {"chosen": better}
    recorder.add_validation(row)
    recorder.display.say(
        f"step {row['step']:>5}: validation loss: training {row['train_loss']:.4f}, "
        f"held out {row['held_out_loss']:.4f}{', best so far' if better else ''}"
    )
    if better:
        # Copies: the outer state's own buffers are donated to the next step.
        return Best(
            jax.tree.map(jnp.copy, outer.average),
            jnp.float32(loss),
            jnp.copy(outer.step),
        )
    return best


def load_trained(path: Path) -> tuple[TrainConfig, TrainingState]:
    """Reads a run directory's configuration and newest checkpoint.

    Raises:
        InputError: if it is none, is damaged, or has no validated θ yet.
    """
    stored = run_directory.read_config(path)
    with reported():
        config = decode(TrainConfig, stored, str(path / "config.json"))
        run = identity(encode(config))
        checkpoints = Checkpoints(path / "checkpoints", run=run)
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
    estimator, arguments = take_estimator(arguments)
    expert, arguments = take_expert(arguments)
    dry, arguments = dry_run.take_flag(arguments)
    if {"-h", "--help"} & set(arguments):
        print(f"{dry_run.FLAG} only prints what the run would be, and how long")
        print(
            f"--lopt NAME puts another optimizer into a preset: {', '.join(OPTIMIZERS)}"
        )
        print(f"--estimator NAME does so with the estimator: {', '.join(ESTIMATORS)}")
        print(f"--expert NAME adds an expert to imitate: {', '.join(EXPERTS)}")
        print(
            "--coordinator HOST:PORT --num-processes N --process-id I: this is one of "
            "N processes that train together"
        )
    presets = PRESETS if lopt is None else with_optimizer(PRESETS, lopt)
    if estimator is not None:
        presets = with_estimator(presets, estimator)
    presets = presets if expert is None else with_expert(presets, expert)
    name, config = command_line.choose_preset(presets, program, arguments)
    wanted, num_chunks = config.run.devices, config.estimator.num_chunks
    if meeting is None and config.run.hosts == "one":
        wanted = wanted or processes.cpu_devices(num_chunks)
        with reported():
            devices.check_shares(num_chunks, wanted)
    if dry:
        print(dry_run.report(config, name))
        return
    processes.join(meeting, config.run.hosts, wanted)
    path = train(config, name)
    print(f"run directory: {path}")


if __name__ == "__main__":
    processes.run(main)
