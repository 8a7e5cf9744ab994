"""Width slopes of a learned optimizer's inputs.

If every input of a learned optimizer is Θ(1) at every width, so is the output of its
network, and the step needs only the scale that μP's rules give it. Each input is
divided by its root mean square and so is Θ(1), except where an absolute floor decides:
gradients fall as 1/width, and below a floor the input fades (its root mean square
falls) or goes blind (it is the same for all elements). Hence two statistics of each
input over a tensor's elements: root mean square and standard deviation.

Reference: Thérien et al., μLO, arXiv:2406.00153, Propositions 4.1 and 4.2.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from evaluation.scaling.coordinate_check import log2_slope
from lopt.base import LearnedOptimizer, Theta
from lopt.baselines import unscale_gradients
from parametrization.rules import Rules
from tasks.base import Batch, Task


@runtime_checkable
class HasFeatures(LearnedOptimizer, Protocol):
    """A learned optimizer that shows its inputs; `lopt.SmallFC` is one."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        ...

    @property
    def rules(self) -> Rules:
        """Parametrization of the steps."""
        ...

    def features(self, theta: Theta, state: Any, grads: Any, params: Any) -> Any:
        """Returns the inputs of the next update, `[*S, F]` for each tensor."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureCheck:
    """Statistics of every input over every tensor at every width; float64."""

    sizes: tuple[int, ...]
    """Widths, ascending (`S`)."""
    tensors: tuple[str, ...]
    """Paths of the parameters (`P`)."""
    features: tuple[str, ...]
    """Names of the inputs, without those that tell the time left (`F`)."""
    rms: np.ndarray
    """Root mean square over the elements, `[S, seeds, P, F]`."""
    spread: np.ndarray
    """Standard deviation over the elements, `[S, seeds, P, F]`."""

    def slopes(self, statistic: str = "rms") -> np.ndarray:
        """Returns slopes `[P, F]` of log₂ statistic against log₂ width.

        Args:
            statistic: "rms" or "spread".

        Returns:
            Slopes; NaN where the statistic is 0.
        """
        values = np.moveaxis(getattr(self, statistic), (2, 3), (0, 1))
        return np.asarray(
            [[log2_slope(self.sizes, cell) for cell in tensor] for tensor in values]
        )


def feature_check(
    tasks: Mapping[int, Task],
    lopt: HasFeatures,
    theta: Theta,
    batch: Batch,
    num_steps: int = 10,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    unscaled: bool = False,
) -> FeatureCheck:
    """Trains every width with the learned optimizer and measures its last inputs.

    Args:
        tasks: the same task by width.
        lopt: the learned optimizer.
        theta: its meta-parameters.
        batch: used at all widths and steps.
        num_steps: training steps before the inputs are taken.
        seeds: seeds of the initial parameters.
        unscaled: whether gradients are first divided by how much μP makes them shrink
            (`lopt.baselines.unscale_gradients`).
    """
    sizes = tuple(sorted(tasks))
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    runs = [
        _statistics(tasks[size], lopt, num_steps, unscaled, theta, keys, batch)
        for size in sizes
    ]
    paths = jax.tree_util.tree_leaves_with_path(tasks[sizes[0]].specs())
    tensors = tuple(
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths
    )
    names = [name for name in lopt.feature_names if not name.startswith("time_")]
    rms, spread = (
        np.stack([np.asarray(run[i], np.float64) for run in runs])[..., : len(names)]
        for i in range(2)
    )
    return FeatureCheck(sizes, tensors, tuple(names), rms, spread)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _statistics(
    task: Task,
    lopt: HasFeatures,
    num_steps: int,
    unscaled: bool,
    theta: Theta,
    keys: jax.Array,
    batch: Batch,
) -> tuple[jax.Array, jax.Array]:
    """Root mean square and standard deviation, `[seeds, P, F]` each."""
    specs = task.specs()
    rule = lopt.as_optax(theta, specs, num_steps)
    noise = jax.random.key(0)
    unscale = unscale_gradients(specs, lopt.rules)

    def gradients(params: Any) -> Any:
        grads = jax.grad(task.loss, has_aux=True)(params, noise, batch)[0]
        return unscale.update(grads, optax.EmptyState())[0] if unscaled else grads

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = rule.update(gradients(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def one(key: jax.Array) -> Any:
        params = task.init(key)
        carry = (params, rule.init(params))
        (params, state), _ = jax.lax.scan(step, carry, length=num_steps)
        features = lopt.features(theta, state, gradients(params), params)
        flat = [x.reshape(-1, x.shape[-1]) for x in jax.tree.leaves(features)]
        rms = jnp.stack([jnp.sqrt(jnp.mean(x**2, 0)) for x in flat])
        return rms, jnp.stack([jnp.std(x, 0) for x in flat])

    return jax.lax.map(one, keys)
