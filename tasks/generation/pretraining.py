"""Pretraining of a frozen stage: Adam for a fixed number of steps.

A stage needs a trained stage before it: random latents have no semantics to compress.
The result takes up to minutes, so it is kept in the cache (`tasks.data.cache`) under
everything that determines it: the task, the fields below, the data's sha256, versions
and settings.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from configuration import identity
from configuration.fields import configuration
from tasks.base import Dataset, Params, Task, check_seed, sample
from tasks.data.cache import Arrays, cached
from tasks.models.base import check_positive
from tasks.source import kept

_RECIPE = 1
"""Raised whenever the same description is to give other parameters."""


@configuration
class Pretraining:
    """Adam, its learning rate falling to zero along a cosine."""

    num_steps: int = 2000
    """Steps of training."""
    learning_rate: float = 2e-3
    """Learning rate of the first step."""
    seed: int = 0
    """Seed of the initial parameters and of the batches."""

    def __post_init__(self) -> None:
        check_positive(self, "num_steps")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate = {self.learning_rate} must be positive")
        check_seed(self.seed)

    def train(self, task: Task) -> Params:
        """Returns the trained parameters, from the cache if they are there.

        Raises:
            ValueError: if training diverges.
        """
        return _train(self, task)


@kept
def _train(recipe: Pretraining, task: Task) -> Params:
    # Concrete even where a caller is being traced, for the result is kept.
    with jax.ensure_compile_time_eval():
        dataset = task.load_data()
        fingerprint = {
            "recipe": [_RECIPE, repr(recipe)],
            "task": repr(task),
            "data": identity.of_arrays(dataset),
            **identity.surroundings(),
        }
        name = f"{type(task).__name__}-pretrained"
        arrays = cached(name, fingerprint, lambda: _run(recipe, task, dataset))
        flat = {tuple(path.split(".")): jnp.array(x) for path, x in arrays.items()}
        return traverse_util.unflatten_dict(flat)


def _run(recipe: Pretraining, task: Task, dataset: Dataset) -> Arrays:
    """Trains, and returns the parameters by their paths."""
    rate = optax.cosine_decay_schedule(recipe.learning_rate, recipe.num_steps)
    optimizer = optax.adam(rate)

    def step(carry: Any, key: jax.Array, dataset: Dataset) -> tuple[Any, jax.Array]:
        params, state = carry
        batch_key, loss_key = jax.random.split(key)
        batch = sample(task, dataset, batch_key)
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, loss_key, batch
        )
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    @jax.jit
    def run(key: jax.Array, dataset: Dataset) -> tuple[Params, jax.Array]:
        start, steps = jax.random.split(key)
        params = task.init(start)
        (params, _), losses = jax.lax.scan(
            lambda carry, key: step(carry, key, dataset),
            (params, optimizer.init(params)),
            jax.random.split(steps, recipe.num_steps),
        )
        return params, losses[-1]

    params, loss = run(jax.random.key(recipe.seed), dataset)
    flat = traverse_util.flatten_dict(params, sep=".")
    arrays = {str(path): np.asarray(x) for path, x in flat.items()}
    if not all(np.isfinite(x).all() for x in (loss, *arrays.values())):
        raise ValueError(
            f"learning_rate = {recipe.learning_rate}: training a "
            f"{type(task).__name__} for {recipe.num_steps} steps ended in numbers that "
            "are not finite; a smaller rate is needed"
        )
    return arrays
