"""Configurations of meta-training, and the named presets.

The components are their own configuration; this file combines them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import jax
from jax.sharding import Mesh

from configuration.encoding import ABSENT
from configuration.fields import configuration, encodable, later
from configuration.ranges import check_range
from experiments.command_line import Components
from experiments.presets.checks import require_positive
from experiments.presets.estimators import ESTIMATORS, AnyEstimator
from experiments.presets.optimizers import OPTIMIZERS
from experiments.presets.steps import Steps
from lopt.learned.small_fc import SmallFC
from lopt.per_parameter.precision import Precision
from lopt.release.registry import AnyLearned
from lopt.wrappers import ScheduledSteps, WeightDecay
from metatrain.estimators.antithetic import AntitheticES
from metatrain.estimators.pes import PES
from metatrain.expert import Expert
from metatrain.inner import Precisions
from metatrain.objective import Objective
from metatrain.outer import MetaTraining
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE
from tasks.base import BaseTask
from tasks.classification import ImageClassification
from tasks.data.embedded import Digits
from tasks.distributions import DISTRIBUTIONS
from tasks.groups import TaskDistribution
from tasks.language_modelling import LanguageModelling
from tasks.modelled import ModelTask
from tasks.models.mlp import MLP
from tasks.registry import NAMED, check_registered
from tasks.variation import Variation

DESPITE = ("versions.", "settings.", "code.")
"""Beginnings of the names of differences despite which a run may go on."""


@configuration
class Validation:
    """Validation runs, which choose the θ that is released."""

    every: int = 100
    """Outer steps between validations of the running average of θ."""
    num_steps: int | None = None
    """Inner steps of a validation run; by default those of the longest episode, so θ is
    chosen at the length that training reaches."""
    figure: Literal["held_out", "train"] = "held_out"
    """Loss that chooses θ: held_out, the mean over fresh outer_valid batches after each
    update; train, over the training batches before it, as baselines are tuned."""
    num_seeds: int = 4
    """Validation runs per task, with seeds that no evaluation uses."""
    suite: str | None = None
    """Named suite whose cells choose θ, each for at most num_steps inner steps; by
    default the tasks of the training."""

    def __post_init__(self) -> None:
        require_positive(self, "every")
        if self.num_steps is not None:
            check_range("num_steps", self.num_steps, "[1, 1e8)")
        check_range("num_seeds", self.num_seeds, "[1, 1e6]")


@configuration
class RunOptions:
    """Options of a run that do not change its results."""

    directory: Path | None = None
    """Run directory; by default runs/NAME."""
    checkpoint_every: int = 100
    """Outer steps between checkpoints of the complete state."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep."""
    log_every: int = 20
    """Outer steps between lines of progress and flushes of metrics.jsonl."""
    stream: bool = False
    """Keep training data on the host, if it does not fit on the device: the same
    batches, fetched one truncation window ahead."""
    devices: int | None = None
    """Devices per process that share the particles; must divide the number of chunks.
    By default all accelerators, or as many CPU devices as cores and chunks allow, at
    most 8, or one if several processes train together."""
    hosts: Literal["one", "auto"] = "one"
    """auto: train together with the processes that SLURM, Kubernetes, MPI or a TPU pod
    has started. Elsewhere use --coordinator HOST:PORT --num-processes N --process-id I,
    or python -m experiments.hosts."""
    stop_after: int | None = None
    """Outer step after which to stop, with a checkpoint."""
    compilation_cache: bool = later(True)
    """Keep compiled programs in the cache folder (METATRAIN_CACHE_DIR, by default
    ~/.cache/metatrain), for the next start."""
    despite: tuple[str, ...] = later(())
    """Versions, settings and code of your own that may differ from those of the
    checkpoint that is continued, such as versions.jax; the artifact will say so."""
    tensorboard: bool = dataclasses.field(default=False, metadata={ABSENT: False})
    """Also write TensorBoard event files, to RUN/tensorboard."""
    wandb: str | None = dataclasses.field(default=None, metadata={ABSENT: None})
    """Also send the metrics to this project at Weights & Biases."""

    def __post_init__(self) -> None:
        names = ("checkpoint_every", "keep_checkpoints", "log_every")
        require_positive(self, *names, "stop_after", "devices")
        if self.directory is not None and not self.directory.name:
            raise ValueError(
                f"run.directory = {str(self.directory)!r} must name a folder"
            )
        for name in self.despite:
            if not name.startswith(DESPITE):
                raise ValueError(
                    f"run.despite = {name!r} must begin with {' or '.join(DESPITE)}: "
                    "a run never goes on with other data"
                )
        if self.wandb is not None and not self.wandb.strip():
            raise ValueError(f"wandb = {self.wandb!r} must be the name of a project")


@configuration
class TrainConfig:
    """Meta-training of one learned optimizer."""

    task: BaseTask | TaskDistribution
    """Task to train on, or a distribution of task groups."""
    lopt: AnyLearned
    """Learned optimizer; --lopt NAME replaces that of the preset."""
    estimator: AnyEstimator
    """Meta-gradient estimator; --estimator NAME replaces that of the preset."""
    outer: OuterOptimizer
    """Optimizer of θ."""
    num_steps: int
    """Outer steps of the whole run; a finished run can be made longer."""
    variation: Variation = Variation()
    """Variation between episodes of a single task; groups have their own."""
    objective: Objective = Objective()
    """Meta-loss."""
    validation: Validation = Validation()
    """Choice of the released θ."""
    seed: int = 0
    """Seed of all randomness."""
    precision: Precision = "float32"
    """Compute precision of the inner models; bfloat16 pays on accelerators only."""
    feature_precision: Precision = dataclasses.field(
        default="float32", metadata={ABSENT: "float32"}
    )
    """Compute precision of the optimizer's per-parameter network: bfloat16 multiplies
    on tensor cores with sums in float32. The released weights run in both."""
    init_from: Path | None = None
    """Artifact whose θ, or parts of it, the run begins with."""
    run: RunOptions = RunOptions()
    """Options that do not change the results."""
    expert: Expert | None = None
    """Expert optimizer for early imitation; None disables it."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps < 10**8:
            raise ValueError(f"num_steps = {self.num_steps} must lie in [1, 10⁸)")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed = {self.seed} must lie in [0, 2³¹)")
        if self.validation.figure == "train" and self.validation_steps < 2:
            raise ValueError(
                "validation.figure = 'train' needs runs of at least 2 steps, not "
                f"{self.validation_steps}: the first loss does not depend on θ"
            )
        if self.init_from is not None:
            # The released artifact names it: refused now, rather than in the end.
            encodable("init_from", str(self.init_from))
        es = self.estimator
        if isinstance(es, AntitheticES) and (
            es.sigma_factors or es.controls.orthogonal
        ):
            es.check(jax.eval_shape(lambda: self.lopt.init(jax.random.key(0))))
        for group in self.distribution.groups:
            check_registered(group.task)
        if not isinstance(self.task, TaskDistribution):
            self.variation.check(self.task)
        elif self.variation != Variation():
            raise ValueError(
                "variation is that of a single task: give each group of the "
                "distribution its own, as --task.groups.0.variation.FIELD"
            )

    @property
    def distribution(self) -> TaskDistribution:
        """The task groups; a single task is one group."""
        if isinstance(self.task, TaskDistribution):
            return self.task
        return TaskDistribution.single(self.task, self.variation)

    @property
    def validation_steps(self) -> int:
        """Inner steps of a validation run."""
        return self.validation.num_steps or self.estimator.lengths.longest

    def build(self, mesh: Mesh | None = None) -> MetaTraining:
        """Builds the meta-training, on the devices of a mesh."""
        return MetaTraining.on(
            self.distribution,
            self.lopt,
            self.estimator,
            self.outer,
            self.num_steps,
            objective=self.objective,
            seed=self.seed,
            expert=self.expert,
            precision=Precisions(self.precision, self.feature_precision),
            mesh=mesh,
        )


QUICKSTART = TrainConfig(
    task=ImageClassification(
        model=MLP(widths=(32, 32), base_width=32, rules=ADAM_LIKE),
        data=Digits(),
        batch_size=128,
    ),
    lopt=ScheduledSteps(
        WeightDecay(
            SmallFC(
                hidden_size=8,
                step_mult=0.01,
                exp_mult=1.0,
                output_scale=0.0,
                initial_step=1.0,
                largest_step=10.0,
                rules=ADAM_LIKE,
            ),
            weight_decay=6e-3,
        ),
        schedule="cosine",
    ),
    estimator=PES(
        num_pairs=16,
        chunk=4,
        truncation=50,
        sigma=0.01,
        # Short episodes first: early steps decide most of the mean loss, and an
        # immature rule diverges in long ones.
        lengths=EpisodeLengths(
            minimum=50, maximum=2000, stages=((750, 50, 60),), growth="log_linear"
        ),
    ),
    outer=OuterOptimizer(learning_rate=6e-3, warmup_steps=50, final_fraction=0.1),
    num_steps=1500,
    validation=Validation(every=150, figure="train"),
    seed=1,
)


def on_family(name: str) -> TrainConfig:
    """Returns the quickstart's optimizer on another family, untuned.

    Shorter and with fewer particles than the quickstart, since most families cost more
    per step than its MLP.
    """
    task = NAMED[name].task()
    if isinstance(task, LanguageModelling):
        task = dataclasses.replace(task, length=32, batch_size=16)
    elif isinstance(task, ModelTask):
        task = dataclasses.replace(task, batch_size=64)
    return dataclasses.replace(
        QUICKSTART,
        task=task,
        estimator=PES(
            num_pairs=4,
            chunk=4,
            truncation=20,
            sigma=0.01,
            lengths=EpisodeLengths(minimum=20, maximum=200),
        ),
        num_steps=200,
        validation=Validation(every=50, num_seeds=2),
    )


def on_distribution(name: str) -> TrainConfig:
    """Returns meta-training over a named distribution, with the recipe of its paper.

    `mulo_*`: arXiv:2406.00153, Section 5, 5,000 outer steps. `celo_*`: the recipe of
    arXiv:2501.12670 for small_fc, 100,000 outer steps. `velo_like`: untuned. The
    distributions on embedded data use the same recipes for a tenth of the outer steps.
    """
    distribution = DISTRIBUTIONS[name].make()
    # The paper's rule is absolute (base width 1): steps 32 times those of base 32.
    recipe = TrainConfig(
        task=distribution,
        lopt=SmallFC(hidden_size=32, step_mult=0.01, rules=ADAM_LIKE),
        estimator=PES(num_pairs=8, truncation=50, lengths=EpisodeLengths(100, 1000)),
        outer=OuterOptimizer(),
        num_steps=5000 if name in ("mulo_s", "mulo_m") else 500,
        validation=Validation(num_seeds=2),
    )
    if name.startswith("mulo"):
        return recipe
    if name == "velo_like":
        return dataclasses.replace(
            recipe,
            estimator=PES(
                num_pairs=4, chunk=4, truncation=20, lengths=EpisodeLengths(20, 400)
            ),
            num_steps=1000,
            validation=Validation(every=250, num_seeds=2),
        )
    return dataclasses.replace(
        recipe,
        estimator=dataclasses.replace(
            recipe.estimator, lengths=EpisodeLengths(100, 2000)
        ),
        outer=OuterOptimizer(learning_rate=3e-4),
        num_steps=100_000 if name == "celo_fast" else 10_000,
    )


Presets: TypeAlias = dict[str, tuple[str, Callable[[], TrainConfig]]]


def presets() -> Presets:
    """Returns every preset by name: a line of description, and what makes it.

    Raises:
        ValueError: if a registered family has the name of another preset.
    """
    for name in NAMED.keys() & {"quickstart", *DISTRIBUTIONS}:
        raise ValueError(
            f"the family {name!r} has the name of a preset: register it under another"
        )
    return {
        "quickstart": (
            "small_fc_lopt in μP on 64-32-32-10 MLPs over digits, minutes on 2 cores",
            lambda: QUICKSTART,
        ),
        **{
            name: (
                f"a start, not tuned: {family.description}",
                partial(on_family, name),
            )
            for name, family in NAMED.items()
        },
        **{
            name: (named.description, partial(on_distribution, name))
            for name, named in DISTRIBUTIONS.items()
        },
    }


def named_components() -> Components:
    """Returns what `--estimator NAME` and `--lopt NAME` put into a preset."""
    own = QUICKSTART.estimator
    assert isinstance(own, AntitheticES)
    return {
        "estimator": {name: partial(make, own) for name, make in ESTIMATORS.items()},
        "lopt": {name: optimizer.make for name, optimizer in OPTIMIZERS.items()},
    }


def _changed(presets: Presets, change: Callable[[TrainConfig], TrainConfig]) -> Presets:
    def make(preset: Callable[[], TrainConfig]) -> TrainConfig:
        return change(preset())

    return {name: (text, partial(make, old)) for name, (text, old) in presets.items()}


def with_optimizer(presets: Presets, lopt: AnyLearned) -> Presets:
    """Returns the presets with another learned optimizer."""
    return _changed(presets, lambda config: dataclasses.replace(config, lopt=lopt))


def with_steps(presets: Presets, steps: Steps) -> Presets:
    """Returns the presets with another schedule, weight decay or floors."""

    def change(config: TrainConfig) -> TrainConfig:
        return dataclasses.replace(config, lopt=steps.of(config.lopt))

    return presets if steps == Steps() else _changed(presets, change)


def with_estimator(presets: Presets, name: str) -> Presets:
    """Returns the presets with another of `ESTIMATORS`, made from each one's own."""

    def change(config: TrainConfig) -> TrainConfig:
        assert isinstance(config.estimator, AntitheticES)
        estimator = ESTIMATORS[name](config.estimator)
        return dataclasses.replace(config, estimator=estimator)

    return _changed(presets, change)
