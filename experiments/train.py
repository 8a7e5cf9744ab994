"""Meta-training: `python -m experiments.train PRESET [--lopt NAME] [--field value]`.

The run directory holds everything. The same command continues an interrupted run from
its newest checkpoint, with the same result as without the interruption.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import command_line
from experiments.command_line import reported
from experiments.presets import configs
from experiments.presets.configs import (
    TrainConfig,
    with_estimator,
    with_optimizer,
    with_steps,
)
from experiments.presets.estimators import ESTIMATORS, check_full, take_estimator
from experiments.presets.experts import EXPERTS, take_expert, with_expert
from experiments.presets.optimizers import OPTIMIZERS, take_optimizer
from experiments.presets.serialization import decode, digest_of, encode
from experiments.presets.steps import EPSILONS, SCHEDULES, take_steps
from experiments.presets.suites import find_suite
from experiments.run import compilation_cache, dry_run, processes
from experiments.run.display import TrainingDisplay
from experiments.run.interruption import Interruption
from experiments.run.origin import REASON, origin
from experiments.run.recorder import Recorder
from experiments.run.release import base_sizes, release
from experiments.run.run_directory import CHECKPOINTS, RunDirectory
from experiments.run.sinks import Sinks, open_sinks
from experiments.run.training_state import Best, TrainingState, first_state, resume
from experiments.run.validation import Validation
from experiments.run.warm_start import initial_theta
from metatrain import devices, streaming
from metatrain.checkpoint import Checkpoints
from metatrain.outer import MetaTraining, OuterState
from metatrain.small_steps import small_steps_warning
from metatrain.streaming import Feed, HostDataset
from tasks.base import Dataset


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
        SystemExit: with code 130 after an interruption; the same command continues.
    """
    path = _directory(config, name)
    encoded = encode(config)
    with processes.run_directory(path) as directory:
        _check_readable(config, encoded)
        processes.check_equal(encoded, "configuration")
        processes.on_first(lambda: directory and directory.claim(encoded))
        run = _prepare(config, encoded, path, directory)
        state = resume(config, run.training, run.checkpoints, directory, run.origin)
        if state is None:
            theta = initial_theta(config, run.training, path)
            state = first_state(run.training, theta)
        if int(state.outer.step) < config.num_steps:
            state = _advance(run, state)
        else:
            print(f"{path} is trained: {config.num_steps} outer steps")
        if int(state.outer.step) >= config.num_steps:
            about = run.checkpoints.about
            processes.on_first(partial(release, config, encoded, path, state, about))
    return path


def _directory(config: TrainConfig, name: str) -> Path:
    return config.run.directory or Path("runs") / name


class _Run(NamedTuple):
    """Everything that a run needs before its first step."""

    config: TrainConfig
    encoded: dict[str, Any]
    path: Path
    directory: RunDirectory | None  # of the first process, as is the validation
    training: MetaTraining
    datasets: list[Dataset | HostDataset]
    validation: Validation | None
    checkpoints: Checkpoints
    origin: dict[str, Any]  # data, versions and settings


def _check_readable(config: TrainConfig, encoded: dict[str, Any]) -> None:
    """Refuses what could not be read back, before hours are spent on it."""
    with reported():
        if decode(TrainConfig, encoded) != config:
            raise ValueError(
                "the configuration is another one once it was written and read: a "
                "class in it is not registered (see tasks.registry.register)"
            )


def _prepare(
    config: TrainConfig,
    encoded: dict[str, Any],
    path: Path,
    directory: RunDirectory | None,
) -> _Run:
    """Builds the meta-training, loads the data and opens the checkpoints."""
    with reported():
        per_process = config.run.devices
        if per_process is None and jax.default_backend() == "cpu":
            shown = jax.local_device_count()
            per_process = processes.cpu_devices(config.estimator.num_chunks, shown)
        mesh = devices.make_mesh(per_process)
        # The task groups, the learned optimizer, the estimator, the outer optimizer.
        training = config.build(mesh)
        before = origin(config)
        datasets = [
            data if isinstance(data, HostDataset) else devices.replicate(data, mesh)
            for group in config.distribution.groups
            for data in [streaming.load(group.task, stream=config.run.stream)]
        ]
        if origin(config) != before:
            raise ValueError("the data changed while it was read; run it again")
    if REASON in before:
        reason = (
            "the run cannot be continued after a stop, for its data has no identity"
        )
        print(f"warning: {reason}: {before[REASON]}", file=sys.stderr)
    groups = {group.name: group.task for group in config.distribution.groups}
    if directory and (warning := small_steps_warning(config.lopt, groups)):
        print(f"warning: {warning}", file=sys.stderr)
    processes.check_equal(before, "data, version or setting")
    validation = None
    if processes.is_first():
        validation = Validation(config, base_sizes(config), datasets)
    checkpoints = Checkpoints(
        path / CHECKPOINTS, config.run.keep_checkpoints, digest_of(encoded)
    )
    return _Run(
        *(config, encoded, path, directory, training, datasets, validation),
        *(checkpoints, before),
    )


def _advance(run: _Run, state: TrainingState) -> TrainingState:
    """Repeats outer steps until the end, `stop_after` or a signal, with checkpoints."""
    config, training = run.config, run.training
    outer, best = state
    first = int(outer.step)
    last = min(config.num_steps, config.run.stop_after or config.num_steps)
    recorder = _recorder(run, first)
    if first:
        print(f"{run.path}: continuing from step {first}")
    tasks = [group.task for group in config.distribution.groups]
    programs = f", {len(tasks)} groups" if len(tasks) > 1 else ""
    print(f"compiling the outer step (seconds, once{programs})", flush=True)
    feed = Feed(training, tasks, run.datasets)
    pace = processes.Pace(training.mesh is not None)
    with feed, recorder, Interruption() as interruption:
        for step in range(first + 1, last + 1):
            outer, metrics = training.step(outer, feed.at(step - 1))
            pace.after(metrics)
            recorder.add(step, metrics)
            if step % config.validation.every == 0 or step == config.num_steps:
                recorder.flush()
                best = _validate(run, outer, best, recorder)
                recorder.display.restart_clock()
            # Asked once a step: a signal may arrive between two answers.
            interrupted = interruption.after(step)
            if interrupted or step == last or step % config.run.checkpoint_every == 0:
                recorder.flush()
                _save(run, step, TrainingState(outer, best))
                recorder.display.restart_clock()
            if interrupted and step < config.num_steps:
                recorder.display.say(
                    f"interrupted at step {step}; run the same command to continue"
                )
                raise SystemExit(command_line.INTERRUPTED)
    return TrainingState(outer, best)


def _recorder(run: _Run, step: int) -> Recorder:
    config, directory = run.config, run.directory
    inner_steps = run.training.inner_steps_per_step
    display = TrainingDisplay(step, config.num_steps, inner_steps)
    skipped = processes.from_first(
        processes.on_first(lambda: directory.skipped_in_a_row() if directory else 0)
    )
    sinks = Sinks({})
    if directory is not None:
        sinks = open_sinks(config.run, run.encoded, run.path, step)
    return Recorder(config, directory, sinks, display, inner_steps, skipped)


def _save(run: _Run, step: int, state: TrainingState) -> None:
    whole = devices.gather(state, run.training.mesh)

    def save() -> None:
        assert run.directory is not None
        run.checkpoints.save(step, whole)
        run.directory.mark_saved()

    with reported():
        processes.on_first(save)


def _validate(run: _Run, outer: OuterState, best: Best, recorder: Recorder) -> Best:
    """Validates the running average of θ on the first process, on one device."""
    if run.validation is None:
        return best
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
    if not better:
        return best
    # Copies: the outer state's own buffers are donated to the next step.
    theta = jax.tree.map(jnp.copy, outer.average)
    return Best(theta, jnp.float32(loss), jnp.copy(outer.step))


HELP = f"""\
--dry-run only prints what the run would be, and how long it may take
--lopt NAME puts another optimizer into a preset: {", ".join(OPTIMIZERS)}
--lopt.schedule NAME lets it learn under a schedule: {", ".join(SCHEDULES)}
--lopt.weight-decay RATE gives it decoupled weight decay, under the schedule
--lopt.epsilons NAME sets the floors of its features: {", ".join(EPSILONS)}
--estimator NAME does so with the estimator: {", ".join(ESTIMATORS)}
--expert NAME adds an expert to imitate: {", ".join(EXPERTS)}
--coordinator HOST:PORT --num-processes N --process-id I: this is one of N processes \
that train together"""
"""Options that are not fields of a configuration."""


def _check_names(config: TrainConfig, name: str) -> None:
    """Refuses an unknown artifact or suite before data is read."""
    # A run that goes on needs no parent.
    if not os.path.exists(_directory(config, name) / CHECKPOINTS):
        command_line.check_folder("--init-from", config.init_from)
    if config.validation.suite is not None:
        find_suite(config.validation.suite, "--validation.suite")


def main() -> None:
    """Command line."""
    meeting, arguments = processes.take_meeting(sys.argv[1:])
    lopt, arguments = take_optimizer(arguments)
    steps, arguments = take_steps(arguments)
    estimator, arguments = take_estimator(arguments)
    expert, arguments = take_expert(arguments)
    dry, arguments = dry_run.take_flag(arguments)
    if command_line.asks_for_help(arguments):
        print(HELP)
    with reported():
        presets = configs.presets()
    presets = presets if lopt is None else with_optimizer(presets, lopt)
    presets = with_steps(presets, steps)
    presets = presets if estimator is None else with_estimator(presets, estimator)
    presets = presets if expert is None else with_expert(presets, expert)
    program = "python -m experiments.train"
    name, config = command_line.choose_preset(
        presets, program, arguments, configs.named_components()
    )
    if estimator == "full_es":
        check_full(config.estimator)
    _check_names(config, name)
    num_devices, num_chunks = config.run.devices, config.estimator.num_chunks
    if meeting is None and config.run.hosts == "one":
        num_devices = num_devices or processes.cpu_devices(num_chunks)
        with reported():
            devices.check_shares(num_chunks, num_devices)
    if dry:
        print(dry_run.report(config, name))
        return
    processes.join(meeting, config.run.hosts, num_devices)
    compilation_cache.use(config.run.compilation_cache)
    path = train(config, name)
    print(f"run directory: {path}")


if __name__ == "__main__":
    processes.run(main)
