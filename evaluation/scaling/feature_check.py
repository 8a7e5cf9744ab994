"""Do the inputs of a learned optimizer say the same at every width?

μP's promise to a learned optimizer rests on its inputs: if each is Θ(1) at every width,
so is the network's output, and the step needs only the scale that the rules give it.
Each input is divided by its root mean square, so it *is* Θ(1), except where an absolute
floor decides: gradients fall as 1/width, and once they are below a floor the input
fades (its root mean square falls) or goes blind (it still has the right size, but is
the same for every element). So two statistics are taken of each input over a tensor's
elements, the root mean square and the standard deviation, and their slopes against the
width.

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
from lopt.base import Specs, Theta
from lopt.baselines import unscale_gradients
from parametrization.rules import Rules
from tasks.base import Batch, Task


@runtime_checkable
class HasFeatures(Protocol):
    """A learned optimizer that shows its inputs; `lopt.SmallFC` is one."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        ...

    @property
    def rules(self) -> Rules:
        """The parametrization of its steps."""
        ...

    def as_optax(
        self, theta: Theta, specs: Specs, num_steps: int | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer (see `LearnedOptimizer.as_optax`)."""
        ...

    def features(self, theta: Theta, state: Any, grads: Any, params: Any) -> Any:
        """Inputs of the next update, `[*S, F]` for each tensor."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureCheck:
    """Statistics of every input over every tensor at every width; float64."""

    sizes: tuple[int, ...]
    """Widths, ascending (`S`)."""
    tensors: tuple[str, ...]
    """Paths of the parameters (`P`)."""
    features: tuple[str, ...]
    """Names of the inputs, those that tell the time left out (`F`)."""
    rms: np.ndarray
    """Root mean square over the elements, `[S, seeds, P, F]`."""
    spread: np.ndarray
    """Standard deviation over the elements, `[S, seeds, P, F]`."""

    def slopes(self, statistic: str = "rms") -> np.ndarray:
        """Slopes `[P, F]` of log₂ statistic against log₂ width; NaN where it is 0.

        Args:
            statistic: "rms" or "spread".
        """
        values = getattr(self, statistic)
        slopes = [
            [
                log2_slope(self.sizes, values[:, :, tensor, feature])
                for feature in range(len(self.features))
            ]
            for tensor in range(len(self.tensors))
        ]
        return np.asarray(slopes)


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
    """Trains every width with the learned optimizer and looks at its last inputs.

    Args:
        tasks: the same task at several widths.
        lopt: the learned optimizer.
        theta: its meta-parameters.
        batch: one fixed batch.
        num_steps: steps of training before the inputs are taken.
        seeds: of the initial parameters.
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
