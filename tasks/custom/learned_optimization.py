"""Tasks of google/learned_optimization, adapted to `Task`.

`adapt` takes a `Task` or a `TaskFamily` of that library, or anything with their
methods. Nothing of it is imported, so it need not be installed. The two interfaces
differ as follows.

* **Data.** The library's four iterators take no seed, and some are shared between
  tasks. A number of batches of each is stored once, when the task is adapted, and a
  batch is one of those (`tasks/data/stored.py`).
* **Loss.** The richest of the library's four methods counts, as it does there. Keys are
  passed as that library knows them, two words of a `PRNGKey`.
* **Model state.** `Task` has no state beside the parameters. State that cannot reach
  the loss or its gradient (running averages of batch normalization in training mode) is
  left out; a task whose loss may depend on its state is refused.
* **Normalizer.** The library maps losses into a range for meta-training. That is *not*
  applied: here a loss is divided by the loss at chance and clipped to [0, 1.5], and NaN
  counts as 1.5, as with most of the library's normalizers.
* **Families.** A family samples a configuration and makes a task of it. An adapted
  family is the task of one configuration, that of its seed; with `sample_config`,
  `init_with` and `loss_with` every episode can have its own. `eval_task_fn` (which
  raises in that library) and `eval_datasets` are not used.
* **Roles.** The parameters carry no annotation, and the task is its own base model, so
  every multiplier is 1 and the parametrization is the standard one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, final

import jax
import jax.numpy as jnp

from configuration import identity
from parametrization.axes import Kind
from parametrization.inference import guess_specs
from tasks.base import (
    Batch,
    Dataset,
    Draws,
    Loss,
    Params,
    Split,
    check_seed,
    initial_loss,
)
from tasks.custom.base import (
    EveryBatch,
    OpaqueTask,
    checked_chance,
    checked_loss,
    never_constant,
)
from tasks.custom.dependence import may_depend
from tasks.data.arrays import Splits
from tasks.data.stored import store

_LOSSES = ("loss_with_state_and_aux", "loss_and_aux", "loss_with_state", "loss")
"""Losses of a `Task` there; its base class makes the missing ones from the poorer."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedTask(OpaqueTask):
    """A task, or a family at one configuration, made by `adapt`.

    Compared by identity: the same object compiles once; another adaptation of the same
    original compiles again. Compiled programs keep the task and its batches in memory.
    """

    original: Any
    """The adapted task or family."""
    name: str
    """Name in messages."""
    data: Splits | None = dataclasses.field(repr=False)
    """Stored batches; None if there is no data."""
    config: Any = dataclasses.field(repr=False)
    """Configuration of a family; None for a single task."""
    state: Any = dataclasses.field(repr=False)
    """Shapes of the model state that is left out; None if there is none."""
    parameter_specs: Any = dataclasses.field(repr=False)
    """A tree of `ParamSpec`."""
    chance: float | None = None
    """Loss at chance, if it was given."""
    version: str | None = None
    """Identifies the original to caches, instead of its own fields."""

    def identified_by(self) -> Mapping[str, Any]:
        """Returns the version, or else the original, and the stored batches."""
        fields = {n: getattr(self, n) for n in ("name", "config", "chance")}
        original = self.original if self.version is None else self.version
        return fields | {"original": original, "data": identity.of_arrays(self.data)}

    @property
    def is_family(self) -> bool:
        """Whether there are configurations to sample."""
        return _is_family(self.original)

    def sample_config(self, key: jax.Array) -> Any:
        """Draws a configuration: a tree of arrays; None for a single task."""
        if not self.is_family:
            return None
        sampled = self.original.sample(jax.random.key_data(key))
        return jax.tree.map(jnp.asarray, sampled)

    def init_with(self, config: Any, key: jax.Array) -> Params:
        """Returns initial parameters in a configuration, which may be traced."""
        return self._at(config).init(key)

    def loss_with(
        self, config: Any, params: Params, key: jax.Array, batch: Batch
    ) -> Loss:
        """Returns the loss `[]` and auxiliary scalars in a configuration.

        Parameters must have begun with `init_with` of the same configuration.
        """
        return self._at(config).loss(params, key, batch)

    def loss_at_chance_over_configs(self) -> float:
        """Returns the mean loss at initialization over 64 sampled configurations."""
        if not self.is_family:
            return self.loss_at_chance
        varied: Any = _Varied(self)
        return checked_chance(self.name, initial_loss(varied))

    def _at(self, config: Any) -> AdaptedTask:
        return dataclasses.replace(self, config=config)

    def init(self, key: jax.Array) -> Params:
        """Returns initial parameters."""
        task = _task_of(self.original, self.config)
        return never_constant(_start(task, key, self.name)[0], key)

    def specs(self) -> Any:
        """Returns the specs of the parameters."""
        return self.parameter_specs

    def load_data(self) -> Dataset:
        """Returns the stored batches; `()` if there is no data."""
        return () if self.data is None else self.data

    def draw(self, dataset: Dataset, key: jax.Array, split: Split, num: int) -> Draws:
        """Draws indices of stored batches, `[num]` int32."""
        if self.data is None:
            return jnp.zeros([num], jnp.int32)
        return dataset.draw(key, split, num, 1)[:, 0]

    def batch(self, dataset: Dataset, draw: Draws, split: Split) -> Batch:
        """Returns one of the stored batches; `()` if there is no data."""
        return () if self.data is None else dataset.batch(draw, split)

    def whole(self, dataset: Dataset, split: Split) -> Batch:
        """Returns all stored batches of a split, for the mean of their losses."""
        return () if self.data is None else EveryBatch(dataset.split(split))

    def loss_of_batch(self, params: Params, key: jax.Array, batch: Batch) -> Loss:
        """Returns the original's loss, with zeros in place of a model state."""
        task = _task_of(self.original, self.config)
        state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.state)
        loss = _loss_of(task, params, state, jax.random.key_data(key), batch)
        return checked_loss(self.name, *loss)


@dataclasses.dataclass(frozen=True)
class _Varied:
    """Enough of a task for `initial_loss`, with configurations among the parameters."""

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
    version: str | None = None,
) -> AdaptedTask:
    """Adapts a task or a family of google/learned_optimization.

    Args:
        original: anything with the methods of its `Task` (`init` or `init_with_state`,
            one of the four losses, `datasets`) or `TaskFamily` (`sample`, `task_fn`,
            `datasets`).
        num_batches: number of training batches stored; training sees no others.
        num_held_out: number of batches stored of each other split.
        seed: seed of a family's configuration.
        kinds: roles of parameters by path (see `infer_specs`); others count as fixed
            (matrices) or as a vector.
        name: name in messages; the original's own if None.
        loss_at_chance: the unit of the normalized loss; if None, the loss at
            initialization averaged over 64 keys.
        version: identifies the original to caches: change it whenever it changes. If
            None, its fields do; without them nothing about the task is cached.

    Raises:
        ValueError: in one line, if the original is neither, if an iterator ends or its
            batches change, if the loss is not one number, or if it may depend on a
            model state.
    """
    name = _name_of(original) if name is None else name
    _check_methods(original, name)
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
    if _is_family(original):
        with jax.ensure_compile_time_eval():  # concrete wherever it is made
            config = jax.jit(lambda key: original.sample(key))(jax.random.key_data(key))
    params, state = jax.eval_shape(
        lambda key: _start(_task_of(original, config), key, name), key
    )
    specs = guess_specs(params, params, kinds)[0]
    task = AdaptedTask(
        original, name, data, config, state, specs, loss_at_chance, version
    )
    task.check()
    _check_state(task, params)
    return task


def _check_state(task: AdaptedTask, params: Params) -> None:
    """Raises ValueError unless the model state can be left out."""
    if not jax.tree.leaves(task.state):
        return
    original = _task_of(task.original, task.config)

    def compute(state: Any, params: Params, data: Dataset, key: jax.Array) -> Any:
        batch = task.batch(data, jnp.zeros([], jnp.int32), "train")
        raw = jax.random.key_data(key)
        # The gradient too: a backward pass of its own may use what the loss does not,
        # and lies open only where it is differentiated.
        return jax.value_and_grad(
            lambda p: _loss_of(original, p, state, raw, batch),
            has_aux=True,
        )(params)

    if may_depend(compute, task.state, params, task.load_data(), jax.random.key(0)):
        raise ValueError(
            f"the loss of {task.name} may depend on its model state, and a task of "
            "ours has no state beside its parameters: only state that cannot reach the "
            "loss, such as running averages in training mode, can be left out"
        )


def _name_of(original: Any) -> str:
    name = getattr(original, "name", None)
    return name if isinstance(name, str) and name else type(original).__name__


def _has(original: Any, *methods: str) -> bool:
    return all(callable(getattr(original, method, None)) for method in methods)


def _is_family(original: Any) -> bool:
    return _has(original, "sample", "task_fn")


def _check_methods(original: Any, name: str) -> None:
    """Raises ValueError if it is neither a task nor a family of tasks."""
    if isinstance(original, type):
        raise ValueError(f"{original.__name__} is a class: adapt an object of it")
    starts = _has(original, "init") or _has(original, "init_with_state")
    losses = any(_has(original, method) for method in _LOSSES)
    if not (_is_family(original) or (starts and losses)):
        raise ValueError(
            f"{name} is neither a task (init or init_with_state, and one of "
            f"{', '.join(_LOSSES)}) nor a family of tasks (sample and task_fn)"
        )


def _task_of(original: Any, config: Any) -> Any:
    """Returns the task itself, or a family's task of a configuration."""
    return original.task_fn(config) if _is_family(original) else original


def _start(task: Any, key: jax.Array, name: str) -> tuple[Params, Any]:
    """Returns initial parameters and model state, None if there is none."""
    raw = jax.random.key_data(key)
    try:
        if _has(task, "init_with_state"):
            return task.init_with_state(raw)
        return task.init(raw), None
    except StopIteration:
        # Some look at a batch of their own for its shape, whenever they are traced.
        raise ValueError(
            f"{name} takes a batch from its datasets to initialize, and they have "
            "ended: give iterators that go on"
        ) from None


def _loss_of(
    task: Any, params: Params, state: Any, raw: jax.Array, batch: Batch
) -> tuple[Any, Any]:
    """Returns loss and auxiliary values by the richest of a task's methods.

    State may be None; `raw` are the two words of a `PRNGKey`.
    """
    if _has(task, "loss_with_state_and_aux"):
        try:
            loss, _, aux = task.loss_with_state_and_aux(params, state, raw, batch)
            return loss, aux
        except ValueError:
            # With a state, the library's base class does not fall back to the poorer
            # method, so a task that defines that alone has no auxiliary values.
            if state is None or not _has(task, "loss_with_state"):
                raise
    if state is None and _has(task, "loss_and_aux"):
        return task.loss_and_aux(params, raw, batch)
    if _has(task, "loss_with_state"):
        return task.loss_with_state(params, state, raw, batch)[0], {}
    return task.loss(params, raw, batch), {}
