"""Does every layer change equally fast, however wide or deep the network is?

A parametrization is right when, after a few steps of training, each layer's output has
moved by an amount that does not depend on the width (for CompleteP: on the depth). The
check trains networks of several sizes on one fixed batch, records how far each layer's
output x_t is from what it was at the start, x_0, and fits the slope of
log₂ std(x_t − x_0) against log₂ size: 0 is right, in the standard parametrization some
layer's slope is near 1. The change is looked at rather than x_t itself, because the
values of the start hide what training adds to them.

Any optimizer can be checked, hand-designed or learned: it is a function of the specs.

Reference: Yang et al., Tensor Programs V, arXiv:2203.03466, Section D.1 and Figure 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

Optimizer = Callable[[Any], optax.GradientTransformationExtraArgs]
"""Specs of the parameters -> an optimizer of them."""


_QUICK_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


class Trainable(Protocol):
    """What can be checked; every `tasks.Task` is one."""

    def init(self, key: jax.Array) -> Any:
        """Initial parameters."""
        ...

    def specs(self) -> Any:
        """A tree of `ParamSpec` with the structure of the parameters."""
        ...

    def loss(
        self, params: Any, key: jax.Array, batch: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean loss `[]` and auxiliary values."""
        ...

    def activations(
        self, params: Any, key: jax.Array, batch: Any
    ) -> dict[str, jax.Array]:
        """What every layer computes, by name."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class CoordinateCheck:
    """Changes of every layer at every size; arrays are float64."""

    sizes: tuple[int, ...]
    """Widths (or depths), ascending: `S` of them."""
    layers: tuple[str, ...]
    """Names of the layers that all sizes have, in order: `L` of them."""
    initial: np.ndarray
    """std(x_0), `[S, seeds, L]`."""
    change: np.ndarray
    """std(x_t − x_0) for t = 1 … T, `[S, seeds, T, L]`."""
    losses: np.ndarray
    """Loss before each step, `[S, seeds, T]`."""

    def slopes(self, step: int = -1) -> dict[str, float]:
        """Slope of log₂ std(x_t − x_0) against log₂ size, by layer.

        Args:
            step: which of the T steps; the last by default.

        Returns:
            A slope; NaN for a layer that did not move at any size (behind a zero
            readout nothing moves at t = 1), infinity where it moved at some sizes
            only or stopped being finite.
        """
        values = self.change[:, :, step]
        return {
            name: log2_slope(self.sizes, values[..., i])
            for i, name in enumerate(self.layers)
        }

    def steepest(self, step: int = -1) -> tuple[str, float]:
        """The layer whose slope is farthest from 0, and that slope."""
        moved = {n: s for n, s in self.slopes(step).items() if not np.isnan(s)}
        if not moved:
            raise ValueError(f"no layer has moved after step {step}: nothing to judge")
        name = max(moved, key=lambda n: abs(moved[n]))
        return name, moved[name]

    def __str__(self) -> str:
        return self.table()

    def table(self, step: int = -1) -> str:
        """A line per layer: its change at every size, and the slope."""
        length = max(len("layer"), *map(len, self.layers))
        sizes = "".join(f"{size:>10}" for size in self.sizes)
        lines = [f"{'layer':<{length}}{sizes}{'slope':>9}"]
        slopes = self.slopes(step)
        means = _mean_log2(self.change[:, :, step])
        for i, name in enumerate(self.layers):
            changes = "".join(f"{2.0**x:>10.3g}" for x in means[:, i])
            slope = "–" if np.isnan(slopes[name]) else f"{slopes[name]:+.3f}"
            lines.append(f"{name:<{length}}{changes}{slope:>9}")
        return "\n".join(lines)


def coordinate_check(
    trainables: Mapping[int, Trainable],
    optimizer: Optimizer,
    batch: Any,
    num_steps: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
) -> CoordinateCheck:
    """Trains every size on one batch and measures how far each layer moves.

    Args:
        trainables: the same task at several sizes (widths, or depths).
        optimizer: specs -> optimizer, for example
            `lambda specs: lopt.as_optax(theta, specs, num_steps)`.
        batch: a pytree of arrays, the same for all sizes and steps.
        num_steps: steps of training (`T`).
        seeds: of the initial parameters, the same at every size.

    Raises:
        ValueError: if there are fewer than two sizes, no seeds or no steps, or the
            sizes have no layer in common.
    """
    sizes = tuple(sorted(trainables))
    if len(sizes) < 2 or sizes[0] < 1:
        raise ValueError(f"sizes {sizes} must be at least two different positive ones")
    if num_steps < 1 or not seeds:
        raise ValueError(f"num_steps = {num_steps}, seeds = {seeds}: at least one each")
    names = [_layers(trainables[size], batch) for size in sizes]
    layers = tuple(n for n in names[0] if all(n in others for others in names))
    if not layers:
        raise ValueError(f"networks of sizes {sizes} have no layer in common")
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    # A few steps of a program that is used once: compiling is what takes time.
    options = _QUICK_TO_COMPILE if jax.default_backend() == "cpu" else {}
    train = jax.jit(_train, static_argnums=(0, 1, 2, 3), compiler_options=options)
    runs = [
        train(trainables[size], optimizer, layers, num_steps, keys, batch)
        for size in sizes
    ]
    initial, change, losses = (
        np.stack([np.asarray(run[i], np.float64) for run in runs]) for i in range(3)
    )
    return CoordinateCheck(sizes, layers, initial, change, losses)


def log2_slope(sizes: Sequence[int], values: np.ndarray) -> float:
    """Least-squares slope of the mean log₂ value against log₂ size.

    Args:
        sizes: `S` different sizes.
        values: `[S, ...]` non-negative; logarithms are averaged over what follows S.

    Returns:
        The slope; NaN if all values are 0, infinity if only some are, or if any is not
        finite.
    """
    if len(set(sizes)) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes {tuple(sizes)} must be at least two, positive")
    values = np.asarray(values, np.float64)
    if not values.any():
        return float("nan")
    if not np.isfinite(values).all() or (values <= 0).any():
        return float("inf")
    x = np.log2(np.asarray(sizes, np.float64))
    y = np.log2(values).reshape(len(x), -1).mean(1)
    x = x - x.mean()
    return float(x @ y / (x @ x))


def _mean_log2(change: np.ndarray) -> np.ndarray:
    """Mean over seeds `[S, L]` of log₂ of `[S, seeds, L]`; −∞ where nothing moved."""
    with np.errstate(divide="ignore"):
        return np.log2(change).mean(1)


def _layers(trainable: Trainable, batch: Any) -> list[str]:
    """Names in the order in which the network computes them (JAX sorts them)."""
    names: list[str] = []

    def note(key: jax.Array, batch: Any) -> None:
        names.extend(trainable.activations(trainable.init(key), key, batch))

    jax.eval_shape(note, jax.random.key(0), batch)
    return names


def _train(
    trainable: Trainable,
    optimizer: Optimizer,
    layers: tuple[str, ...],
    num_steps: int,
    keys: jax.Array,
    batch: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """std(x_0) `[seeds, L]`, std(x_t − x_0) `[seeds, T, L]`, losses `[seeds, T]`."""
    rule = optimizer(trainable.specs())
    # A model that samples does so with the same noise at every step.
    noise = jax.random.key(0)

    def compute(params: Any) -> list[jax.Array]:
        computed = trainable.activations(params, noise, batch)
        return [computed[name] for name in layers]

    def one(key: jax.Array) -> Any:
        params = trainable.init(key)
        first = compute(params)

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            (loss, _), grads = jax.value_and_grad(trainable.loss, has_aux=True)(
                params, noise, batch
            )
            updates, state = rule.update(grads, state, params, loss=loss)
            params = optax.apply_updates(params, updates)
            now = compute(params)
            change = [jnp.std(x - x0) for x, x0 in zip(now, first, strict=True)]
            return (params, state), (jnp.stack(change), loss)

        start = (params, rule.init(params))
        _, (change, losses) = jax.lax.scan(step, start, length=num_steps)
        return jnp.stack([jnp.std(x) for x in first]), change, losses

    # One seed at a time: the widest network decides how much memory this needs.
    return jax.lax.map(one, keys)
