"""Tasks of google/learned_optimization, made ours.

`adapt` takes a `Task` or a `TaskFamily` of that library, or anything with their methods
(`tasks/custom/foreign.py`). Nothing of it is imported, so it need not be installed.
What differs between the two is settled here.

* **Data.** Theirs are four iterators. A number of batches of each is taken once, when
  the task is adapted, and a batch is one of those (`tasks/data/stored.py`). No seed can
  be given to an iterator, and some are shared between tasks: two adaptations see
  different batches, one sees the same ones for as long as it lives.
* **Loss.** Theirs has four methods; the richest counts, as it does there. Keys are
  handed over as that library knows them, two words of a `PRNGKey`.
* **Model state.** Ours has none beside the parameters. State that cannot reach the loss
  or its gradient (running averages of batch normalization, which there is always in
  training mode) is left out, since that changes nothing. A task whose loss may depend
  on its state is refused: frozen, it would be another task.
* **Normalizer.** Theirs maps a loss into a range for meta-training. It is *not*
  applied: ours divides by the loss at chance and counts everything above 1.5 of that,
  and NaN, as 1.5, which is what most of theirs do. A loss below zero counts as zero.
* **Families.** A family samples a configuration and makes a task of it. An adapted
  family is the task of one configuration, that of its seed; with `sample_config`,
  `init_with` and `loss_with` every episode can have its own. `eval_task_fn` (which
  raises in that library) and `eval_datasets` are not used.
* **Roles.** The parameters carry no annotation, and there is no base model: the task is
  its own, every multiplier is 1, and its parametrization is the standard one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, final

import jax
import jax.numpy as jnp

from parametrization.axes import Kind
from parametrization.spec import infer_specs
from tasks.base import Batch, Dataset, Draws, Params, Split
from tasks.custom import foreign
from tasks.custom.base import (
    EveryBatch,
    Loss,
    OpaqueTask,
    checked_chance,
    checked_loss,
    never_constant,
)
from tasks.custom.dependence import may_depend
from tasks.data.arrays import Splits
from tasks.data.stored import store
from tasks.synthetic.base import check_seed, initial_loss


@final
@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedTask(OpaqueTask):
    """A task, or a family at one configuration, as `adapt` makes it.

    Compared by identity: the same object compiles once; another adaptation of the same
    original compiles again. What is compiled keeps the task and its batches in memory.
    """

    original: Any
    """The task or the family that was adapted."""
    name: str
    """What messages call it."""
    data: Splits | None = dataclasses.field(repr=False)
    """The batches that were taken; None if it has no data."""
    config: Any = dataclasses.field(repr=False)
    """The configuration of a family; None of a single task."""
    state: Any = dataclasses.field(repr=False)
    """Shapes of the model state that is left out; None if there is none."""
    parameter_specs: Any = dataclasses.field(repr=False)
    """A tree of `ParamSpec`."""
    chance: float | None = None
    """The loss at chance, where it was given."""

    @property
    def is_family(self) -> bool:
        """Whether there is anything to sample for `init_with` and `loss_with`."""
        return foreign.is_family(self.original)

    @property
    def width(self) -> int | None:
        """None: none is known (see `Task.width`)."""
        return None

    def sample_config(self, key: jax.Array) -> Any:
        """A configuration of the family: a tree of arrays; None of a single task.

        Args:
            key: consumed; may be traced.
        """
        if not self.is_family:
            return None
        sampled = self.original.sample(jax.random.key_data(key))
        return jax.tree.map(jnp.asarray, sampled)

    def init_with(self, config: Any, key: jax.Array) -> Params:
        """Initial parameters of the task of a configuration.

        Args:
            config: what `sample_config` returned; may be traced.
            key: consumed.
        """
        return self._at(config).init(key)

    def loss_with(
        self, config: Any, params: Params, key: jax.Array, batch: Batch
    ) -> Loss:
        """The loss `[]` and auxiliary scalars of a batch in a configuration.

        Args:
            config: that of the episode; may be traced.
            params: parameters; `init_with` made the first ones of this configuration.
            key: consumed.
            batch: one batch, or `EveryBatch`.
        """
        return self._at(config).loss(params, key, batch)

    def loss_at_chance_over_configs(self) -> float:
        """Mean loss at initialization over 64 keys, each of a new configuration.

        The unit for episodes that vary; `loss_at_chance` is that of one configuration.
        """
        if not self.is_family:
            return self.loss_at_chance
        varied: Any = _Varied(self)
        return checked_chance(self.name, initial_loss(varied))

    def _at(self, config: Any) -> AdaptedTask:
        return dataclasses.replace(self, config=config)

    def init(self, key: jax.Array) -> Params:
        """Initial parameters (see `Task.init`)."""
        task = foreign.task_of(self.original, self.config)
        return never_constant(foreign.start(task, key, self.name)[0], key)

    def specs(self) -> Any:
        """Specs of the parameters (see `Task.specs`)."""
        return self.parameter_specs

    def load_data(self) -> Dataset:
        """The batches that were taken; `()` if there is no data."""
        return () if self.data is None else self.data

    def draw(self, dataset: Dataset, key: jax.Array, split: Split, num: int) -> Draws:
        """Which of the stored batches, `[num]` int32."""
        if self.data is None:
            return jnp.zeros([num], jnp.int32)
        return dataset.draw(key, split, num, 1)[:, 0]

    def batch(self, dataset: Dataset, draw: Draws, split: Split) -> Batch:
        """One of the stored batches; `()` if there is no data."""
        return () if self.data is None else dataset.batch(draw, split)

    def whole(self, dataset: Dataset, split: Split) -> Batch:
        """All stored batches of a split, of whose losses the mean is taken."""
        return () if self.data is None else EveryBatch(dataset.split(split))

    def loss_of_batch(self, params: Params, key: jax.Array, batch: Batch) -> Loss:
        """The original's loss (see `Task.loss`)."""
        task = foreign.task_of(self.original, self.config)
        loss = foreign.loss_without_state(task, params, self.state, key, batch)
        return checked_loss(self.name, *loss)


@dataclasses.dataclass(frozen=True)
class _Varied:
    """Enough of a task to average over configurations: they lie with the parameters."""

    task: AdaptedTask

    def init(self, key: jax.Array) -> Any:
        of_config, of_params = jax.random.split(key)
        config = self.task.sample_config(of_config)
        return config, self.task.init_with(config, of_params)

    def load_data(self) -> Dataset:
        return self.task.load_data()

    def draw(self, dataset: Dataset, key: jax.Array, split: Split, num: int) -> Draws:
        return self.task.draw(dataset, key, split, num)

    def batch(self, dataset: Dataset, draw: Draws, split: Split) -> Batch:
        return self.task.batch(dataset, draw, split)

    def loss(self, params: Any, key: jax.Array, batch: Batch) -> Loss:
        config, params = params
        return self.task.loss_with(config, params, key, batch)


def adapt(
    original: Any,
    *,
    num_batches: int = 128,
    num_held_out: int = 16,
    seed: int = 0,
    kinds: Mapping[str, Kind] | None = None,
    name: str | None = None,
    loss_at_chance: float | None = None,
) -> AdaptedTask:
    """Makes a task or a family of google/learned_optimization ours.

    Args:
        original: anything with the methods of its `Task` (`init` or `init_with_state`,
            one of the four losses, `datasets`) or `TaskFamily` (`sample`, `task_fn`,
            `datasets`).
        num_batches: batches taken of the training data; training never sees others.
        num_held_out: batches taken of each other split.
        seed: of the configuration, of a family.
        kinds: roles of parameters by path (see `infer_specs`); what is not named counts
            as fixed (matrices) or a vector.
        name: what messages call it; the original's own name if None.
        loss_at_chance: the unit of the normalized loss; if None, the loss at
            initialization averaged over 64 keys.

    Raises:
        ValueError: in one line, if the original is neither, if an iterator ends or its
            batches change, if the loss is not one number, or if it may depend on a
            model state.
    """
    name = foreign.name_of(original) if name is None else name
    foreign.check_methods(original, name)
    check_seed(seed)
    for field, value in (("num_batches", num_batches), ("num_held_out", num_held_out)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{field} = {value!r} must be a positive whole number")
    datasets = getattr(original, "datasets", None)
    try:
        data = None if datasets is None else store(datasets, num_batches, num_held_out)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    key = jax.random.key(seed)
    config = None
    if foreign.is_family(original):
        with jax.ensure_compile_time_eval():  # concrete wherever it is made
            config = jax.jit(lambda key: original.sample(key))(jax.random.key_data(key))
    params, state = jax.eval_shape(
        lambda key: foreign.start(foreign.task_of(original, config), key, name), key
    )
    specs = infer_specs(params, params, kinds)
    task = AdaptedTask(
        original, name, data, config, state, specs, chance=loss_at_chance
    )
    task.check()
    _check_state(task, params)
    return task


def _check_state(task: AdaptedTask, params: Params) -> None:
    """Raises ValueError unless the model state can be left out."""
    if not jax.tree.leaves(task.state):
        return
    original = foreign.task_of(task.original, task.config)

    def compute(state: Any, params: Params, data: Dataset, key: jax.Array) -> Any:
        batch = task.batch(data, jnp.zeros([], jnp.int32), "train")
        raw = jax.random.key_data(key)
        # The gradient too: a backward pass of its own may use what the loss does not,
        # and lies open only where it is differentiated.
        return jax.value_and_grad(
            lambda p: foreign.loss_in_state(original, p, state, raw, batch),
            has_aux=True,
        )(params)

    if may_depend(compute, task.state, params, task.load_data(), jax.random.key(0)):
        raise ValueError(
            f"the loss of {task.name} may depend on its model state, and a task of "
            "ours has no state beside its parameters: only state that cannot reach the "
            "loss, such as running averages in training mode, can be left out"
        )
