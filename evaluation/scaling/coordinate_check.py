"""Coordinate checks: whether every layer changes equally fast at every size.

A parametrization is right when, after a few training steps, each layer's output has
moved by an amount that does not depend on the width (for CompleteP: the depth). The
check trains networks of several sizes on one fixed batch and fits the slope of
log₂ std(x_t − x_0) against log₂ size for each layer's output x_t: 0 is right; in the
standard parametrization some layer's slope is near 1. It looks at the change because
the initial values hide what training adds to them.

Reference: Yang et al., Tensor Programs V, arXiv:2203.03466, Section D.1 and Figure 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metatrain.compiler import known_options
from tasks.base import Batch, Task

Optimizer = Callable[[Any], optax.GradientTransformationExtraArgs]
"""Specs of the parameters -> an optimizer of them, learned or hand-designed."""

_QUICK_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,  # unknown since JAX 0.12
}


@dataclasses.dataclass(frozen=True, eq=False)
class CoordinateCheck:
    """Changes of every layer at every size; float64 arrays."""

    sizes: tuple[int, ...]
    """Widths or depths, ascending (`S`)."""
    layers: tuple[str, ...]
    """Names of the layers that all sizes have, in order (`L`)."""
    initial: np.ndarray
    """std(x_0), `[S, seeds, L]`."""
    change: np.ndarray
    """std(x_t − x_0) for t = 1 … T, `[S, seeds, T, L]`."""
    losses: np.ndarray
    """Loss before each step, `[S, seeds, T]`."""

    def slopes(self, step: int = -1) -> dict[str, float]:
        """Returns each layer's slope of log₂ std(x_t − x_0) against log₂ size.

        Args:
            step: index of the step among the T, by default the last.

        Returns:
            Slopes by layer; NaN where nothing moved at any size (behind a zero readout
            at t = 1), infinity where it moved at some sizes only or was not finite.
        """
        values = self.change[:, :, step]
        return {
            name: log2_slope(self.sizes, values[..., i])
            for i, name in enumerate(self.layers)
        }

    def steepest(self, step: int = -1) -> tuple[str, float]:
        """Returns the layer whose slope is farthest from 0, and that slope."""
        moved = {n: s for n, s in self.slopes(step).items() if not np.isnan(s)}
        if not moved:
            raise ValueError(f"no layer has moved after step {step}: nothing to judge")
        name = max(moved, key=lambda n: abs(moved[n]))
        return name, moved[name]

    def __str__(self) -> str:
        return self.table()

    def table(self, step: int = -1) -> str:
        """Formats each layer's change at every size, and its slope, as a line."""
        length = max(len("layer"), *map(len, self.layers))
        sizes = "".join(f"{size:>10}" for size in self.sizes)
        lines = [f"{'layer':<{length}}{sizes}{'slope':>9}"]
        with np.errstate(divide="ignore"):
            means = 2.0 ** np.log2(self.change[:, :, step]).mean(1)
        for i, (name, slope) in enumerate(self.slopes(step).items()):
            changes = "".join(f"{x:>10.3g}" for x in means[:, i])
            text = "–" if np.isnan(slope) else f"{slope:+.3f}"
            lines.append(f"{name:<{length}}{changes}{text:>9}")
        return "\n".join(lines)


def coordinate_check(
    tasks: Mapping[int, Task],
    optimizer: Optimizer,
    batch: Batch,
    num_steps: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
) -> CoordinateCheck:
    """Trains every size on one batch and measures how far each layer moves.

    Args:
        tasks: the same task by size (width or depth).
        optimizer: specs -> optimizer, for example
            `lambda specs: lopt.as_optax(theta, specs, num_steps)`.
        batch: used at all sizes and steps.
        num_steps: training steps (`T`).
        seeds: seeds of the initial parameters, the same at every size.

    Raises:
        ValueError: if there are fewer than two sizes, no seeds or no steps, or the
            sizes have no layer in common.
    """
    sizes = tuple(sorted(tasks))
    if len(sizes) < 2 or sizes[0] < 1:
        raise ValueError(f"sizes {sizes} must be at least two different positive ones")
    if num_steps < 1 or not seeds:
        raise ValueError(f"num_steps = {num_steps}, seeds = {seeds}: at least one each")
    names = [_layers(tasks[size], batch) for size in sizes]
    layers = tuple(n for n in names[0] if all(n in others for others in names))
    if not layers:
        raise ValueError(f"networks of sizes {sizes} have no layer in common")
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    # A few steps of a program that is used once: compiling is what takes time.
    quick = _QUICK_TO_COMPILE if jax.default_backend() == "cpu" else {}
    options = known_options(quick)
    train = jax.jit(_train, static_argnums=(0, 1, 2, 3), compiler_options=options)
    runs = [
        train(tasks[size], optimizer, layers, num_steps, keys, batch) for size in sizes
    ]
    initial, change, losses = (
        np.stack([np.asarray(run[i], np.float64) for run in runs]) for i in range(3)
    )
    return CoordinateCheck(sizes, layers, initial, change, losses)


def log2_slope(sizes: Sequence[int], values: np.ndarray) -> float:
    """Returns the least-squares slope of the mean log₂ value against log₂ size.

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


def _layers(task: Task, batch: Batch) -> list[str]:
    """Names in the order in which the network computes them (JAX sorts them)."""
    names: list[str] = []

    def note(key: jax.Array, batch: Batch) -> None:
        names.extend(task.activations(task.init(key), key, batch))

    jax.eval_shape(note, jax.random.key(0), batch)
    return names


def _train(
    task: Task,
    optimizer: Optimizer,
    layers: tuple[str, ...],
    num_steps: int,
    keys: jax.Array,
    batch: Batch,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """std(x_0) `[seeds, L]`, std(x_t − x_0) `[seeds, T, L]`, losses `[seeds, T]`."""
    rule = optimizer(task.specs())
    # A model that samples draws the same noise at every step.
    noise = jax.random.key(0)

    def compute(params: Any) -> list[jax.Array]:
        computed = task.activations(params, noise, batch)
        return [computed[name] for name in layers]

    def one(key: jax.Array) -> Any:
        params = task.init(key)
        first = compute(params)

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
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
