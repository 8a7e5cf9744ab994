"""Regression to a fixed network with random weights, on an endless stream of data.

A batch is made in-graph from its key: Gaussian inputs, the teacher's outputs, noise. So
no example is seen twice, and the lowest loss is known: the variance of the noise.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple, final

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from parametrization.spec import ParamSpec
from tasks.base import Batch, Loss, Params, Split, batch_keys, check_seed, shaped
from tasks.modelled import ModelTask
from tasks.models.base import Model, check_positive
from tasks.models.mlp import MLP
from tasks.source import tree_bytes

WHOLE = 4096
"""Examples that represent a whole split."""

_CALIBRATION = 16384
_BIAS_STD = 0.5


class Teacher(NamedTuple):
    """A network, and the statistics of its outputs."""

    params: Params
    mean: jax.Array  # [outputs]
    std: jax.Array  # [outputs]


class Examples(NamedTuple):
    """A batch."""

    inputs: jax.Array  # [B, inputs]
    targets: jax.Array  # [B, outputs]


@final
@configuration
class RandomTeacher(ModelTask):
    """Mean squared error of a student that learns from a network with random weights.

    Inputs are drawn from N(0, 1). Targets are the teacher's outputs, each of them
    standardized to mean 0 and variance 1, plus noise. The unit of the loss is a
    target's variance without noise, and the least loss is noise².
    """

    model: Model = MLP()
    """Student network, which is trained."""
    teacher: MLP = MLP(widths=(64, 64))
    """Network to learn; its weights and biases are all random."""
    num_inputs: int = 16
    """Numbers in an input."""
    num_targets: int = 4
    """Numbers in a target."""
    noise: float = 0.1
    """Standard deviation of the noise on targets, in units of their own."""
    batch_size: int = 128
    """Examples per batch, new ones each time."""
    seed: int = 0
    """Seed of the teacher."""

    unit = "squared deviations"

    def __post_init__(self) -> None:
        check_positive(self, "num_inputs", "num_targets", "batch_size")
        if not 0.0 <= self.noise <= 1e6:
            raise ValueError(f"noise = {self.noise} must lie in [0, 1e6]")
        check_seed(self.seed)
        self.check_roles()

    @property
    def loss_at_chance(self) -> float:
        """Loss of the best constant, which is 0: 1 + noise²."""
        return 1.0 + self.noise**2

    @property
    def lowest_loss(self) -> float:
        """Expected loss of the teacher itself: noise²."""
        return self.noise**2

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Numbers in an input."""
        return (self.num_inputs,)

    @property
    def num_outputs(self) -> int:
        """Numbers in a target."""
        return self.num_targets

    @property
    def data_name(self) -> str:
        """Name of the data in tables."""
        return "made in-graph"

    @property
    def resolution(self) -> str:
        """Size of one input."""
        return f"{self.num_inputs} inputs"

    def batch_shapes(self) -> Examples:
        """Returns the shapes of a training batch (see `Task.batch_shapes`)."""
        size = self.batch_size
        return Examples(shaped(size, self.num_inputs), shaped(size, self.num_targets))

    def dataset_bytes(self) -> int:
        """Returns the bytes of the teacher, without spending seconds on making it."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        network = jax.eval_shape(
            lambda key: self.teacher.init(key, self.input_shape, self.num_targets), key
        )
        statistics = shaped(2, self.num_targets)
        return tree_bytes((network, statistics))

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns inputs `[B, num_inputs]`."""
        return batch.inputs

    def load_data(self) -> Teacher:
        """Returns the teacher (made once per process)."""
        return _make_teacher(self.teacher, self.num_inputs, self.num_targets, self.seed)

    def draw(
        self, dataset: Teacher, key: jax.Array, split: Split, num: int
    ) -> jax.Array:
        """Draws the keys of `num` batches `[num]`."""
        del dataset
        return batch_keys(key, split, num)

    def batch(self, dataset: Teacher, draw: jax.Array, split: Split) -> Examples:
        """Returns new examples."""
        del split
        return self._examples(dataset, draw, self.batch_size)

    def whole(self, dataset: Teacher, split: Split) -> Examples:
        """Returns a fixed sample of 4096 examples, a different one for each split."""
        (key,) = batch_keys(jax.random.key(self.seed), split, 1)
        return self._examples(dataset, key, WHOLE)

    def loss(self, params: Params, key: jax.Array, batch: Examples) -> Loss:
        """Returns the squared error `[]`, the mean over examples and outputs."""
        del key
        outputs = self.model.apply(params, batch.inputs, self.num_targets)
        return jnp.mean((outputs - batch.targets) ** 2), {}

    def _examples(self, dataset: Teacher, key: jax.Array, num: int) -> Examples:
        of_inputs, of_noise = jax.random.split(key)
        inputs = jax.random.normal(of_inputs, (num, self.num_inputs))
        outputs = self.teacher.apply(dataset.params, inputs, self.num_targets)
        mean, std = (jnp.broadcast_to(x, outputs.shape) for x in dataset[1:])
        noise = self.noise * jax.random.normal(of_noise, outputs.shape)
        return Examples(inputs, (outputs - mean) / std + noise)


@functools.cache
def _make_teacher(model: MLP, inputs: int, outputs: int, seed: int) -> Teacher:
    def make() -> Teacher:
        start, away, sample = jax.random.split(jax.random.key(seed), 3)
        leaves, structure = jax.tree.flatten(model.init(start, (inputs,), outputs))
        specs = jax.tree.leaves(model.specs((inputs,), outputs))
        keys = jax.random.split(away, len(leaves))
        params = structure.unflatten(map(_moved, leaves, specs, keys))
        x = jax.random.normal(sample, (_CALIBRATION, inputs))
        y = model.apply(params, x, outputs)
        return Teacher(params, jnp.mean(y, axis=0), jnp.std(y, axis=0))

    # Concrete even where a caller is being traced, for the result is kept.
    with jax.ensure_compile_time_eval():
        made = jax.jit(make)()
        if not float(jnp.min(made.std)) > 1e-4:
            raise ValueError(
                f"teacher = {model} with seed = {seed} gives the same outputs whatever "
                "the input: make it wider or shallower, or take another seed"
            )
        return made


def _moved(leaf: jax.Array, spec: ParamSpec, key: jax.Array) -> jax.Array:
    """Returns the leaf made random, if it starts at zero or at a gain of one."""
    if spec.kind == "output":
        std = 1.0 / math.sqrt(spec.fan_in)
    else:
        std = _BIAS_STD if spec.kind == "vector" else 0.0
    return leaf + std * jax.random.normal(key, leaf.shape)
