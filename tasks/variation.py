"""Variation between the runs of a task, at no further compilation.

A `Variation` says what differs and how far; a `Variant` is one draw of it, a few traced
numbers that are constant during a run. In meta-training each antithetic pair draws a
variant when its episode begins, and both members train on it.

* **Reparametrization**: the network computes with s·w in place of w and starts at w₀/s,
  so it starts as the same function. Gradients are multiplied by s, and the step that is
  needed by 1/s. There is one factor s for the whole task, for each tensor, or for each
  parameter (VeLO, arXiv:2211.09760; Celo, arXiv:2501.12670, draws one for the task from
  [1e-3, 1e3]).
* **Loss scale**: multiplies the loss that is differentiated and that an optimizer sees,
  not the loss that is recorded and counts as meta-loss.
* **Initialization scale**: multiplies the initial matrices. Vectors and scalars are not
  scaled: gains of norms must stay at 1, and biases are 0.
* **Label noise**: a share of the labels is wrong, for the same examples in every epoch.
* **Batch subsampling**: a batch repeats its first rows. The share is a power of ½, so
  every row counts equally and the mean over the batch *is* the mean over the smaller
  batch, whatever the loss.

Ranges are log-uniform, except for label noise, which is uniform. What does not vary is
not part of the program.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from tasks.base import Batch, Draws, Labelled, Parametric, Params, RowBatches, Task

Level = Literal["none", "task", "tensor", "parameter"]
Range = tuple[float, float]

_UNSCALED: Range = (1.0, 1.0)
_NOISELESS: Range = (0.0, 0.0)


class Variant(NamedTuple):
    """One draw of a variation; None where nothing varies."""

    factors: Any | None = None  # tree of the parameters: [], or of their shapes
    loss_scale: jax.Array | None = None  # []
    init_scale: jax.Array | None = None  # []
    label_noise: jax.Array | None = None  # [], the share of wrong labels
    label_seed: jax.Array | None = None  # [] uint32
    rows: jax.Array | None = None  # [] int32, different rows of a batch
    config: Any | None = None  # numbers of a parametric task


UNVARIED = Variant()
"""The unchanged task."""


def _span(bounds: Range) -> str:
    return f"{bounds[0]:g}…{bounds[1]:g}"


def _log_uniform(key: jax.Array, bounds: Range) -> jax.Array | None:
    """Returns a number `[]`, or None if it can only be 1."""
    if bounds == _UNSCALED:
        return None
    low, high = map(math.log, bounds)
    return jnp.exp(jax.random.uniform(key, minval=low, maxval=high))


def _check_range(name: str, bounds: Range, least: float, most: float) -> None:
    if not least <= bounds[0] <= bounds[1] <= most:
        raise ValueError(
            f"{name} = {bounds!r} must be two ascending numbers in "
            f"[{least:g}, {most:g}]"
        )


@configuration
class Variation:
    """Differences between two runs of a task; none by default."""

    reparametrization: Level = "none"
    """Whether s·w replaces w, with one s for the task, tensor or parameter."""
    factors: Range = (1e-2, 1e2)
    """Range of s, log-uniform."""
    loss_scale: Range = _UNSCALED
    """Range of the factor on the differentiated loss, log-uniform."""
    init_scale: Range = _UNSCALED
    """Range of the factor on initial matrices, log-uniform."""
    label_noise: Range = _NOISELESS
    """Range of the share of wrong labels, uniform; 0.1 means one in ten."""
    batch_share: float = 1.0
    """Smallest share of different rows in a batch, a power of ½. Powers from 1 down to
    it are equally likely."""

    def __post_init__(self) -> None:
        for name in ("factors", "loss_scale", "init_scale"):
            _check_range(name, getattr(self, name), 1e-9, 1e9)
        _check_range("label_noise", self.label_noise, 0.0, 1.0)
        share = self.batch_share
        if not 0 < share <= 1 or math.frexp(share)[0] != 0.5:
            raise ValueError(f"batch_share = {share} must be a power of ½, at most 1")

    @property
    def active(self) -> bool:
        """Whether anything varies."""
        return self != dataclasses.replace(Variation(), factors=self.factors)

    @property
    def summary(self) -> str:
        """One line for a list."""
        plain = Variation(factors=self.factors)
        parts = [
            f"{field.name} {value if isinstance(value, str | float) else _span(value)}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != getattr(plain, field.name)
        ]
        if self.reparametrization != "none":
            parts.insert(1, f"factors {_span(self.factors)}")
        return ", ".join(parts) or "nothing varies"

    def check(self, task: Task) -> None:
        """Raises ValueError if the task cannot vary in this way."""
        kind = type(task).__name__
        if self.label_noise != _NOISELESS and not isinstance(task, Labelled):
            raise ValueError(
                f"label_noise = {self.label_noise}: a {kind} has no labels; leave it 0"
            )
        if self.batch_share == 1.0:
            return
        if not isinstance(task, RowBatches):
            raise ValueError(
                f"batch_share = {self.batch_share}: the batches of a {kind} are not "
                "rows of data; leave it 1"
            )
        if task.batch_size * self.batch_share % 1:
            raise ValueError(
                f"batch_share = {self.batch_share} of batch_size = {task.batch_size} "
                "is no whole number of rows"
            )

    def sample(self, task: Task, key: jax.Array) -> Variant:
        """Draws a variant; the key is consumed."""
        config = None
        if isinstance(task, Parametric):
            config = task.sample_config(jax.random.fold_in(key, 0))
        if not self.active:
            return Variant(config=config)
        keys = jax.random.split(jax.random.fold_in(key, 1), 6)
        variant = Variant(
            factors=self._factors(task, keys[0]),
            loss_scale=_log_uniform(keys[1], self.loss_scale),
            init_scale=_log_uniform(keys[2], self.init_scale),
            rows=self._rows(task, keys[5]),
            config=config,
        )
        if self.label_noise == _NOISELESS:
            return variant
        low, high = self.label_noise
        return variant._replace(
            label_noise=low + (high - low) * jax.random.uniform(keys[3]),
            label_seed=jax.random.bits(keys[4]),
        )

    def _factors(self, task: Task, key: jax.Array) -> Any | None:
        if self.reparametrization == "none":
            return None
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        leaves, structure = jax.tree.flatten(shapes)
        low, high = map(math.log, self.factors)

        def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            # Drawn flat: the same bits, in a fraction of the time to compile.
            flat = jax.random.uniform(key, (math.prod(shape),), minval=low, maxval=high)
            return jnp.exp(flat).reshape(shape)

        if self.reparametrization == "task":
            return structure.unflatten([draw(key, ())] * len(leaves))
        if self.reparametrization == "tensor":
            each = draw(key, (len(leaves),))
            return structure.unflatten([each[i] for i in range(len(leaves))])
        sizes = [leaf.size for leaf in leaves]
        flat, parts, begin = draw(key, (sum(sizes),)), [], 0
        for leaf, size in zip(leaves, sizes, strict=True):
            parts.append(flat[begin : begin + size].reshape(leaf.shape))
            begin += size
        return structure.unflatten(parts)

    def _rows(self, task: Task, key: jax.Array) -> jax.Array | None:
        if self.batch_share == 1.0:
            return None
        assert isinstance(task, RowBatches)
        halvings = round(-math.log2(self.batch_share))
        return task.batch_size // 2 ** jax.random.randint(key, (), 0, halvings + 1)


UNVARYING = Variation()
"""Every run is the unchanged task."""


def init(task: Task, variant: Variant, key: jax.Array) -> Params:
    """Returns initial parameters of one run."""
    if variant.config is not None:
        assert isinstance(task, Parametric)
        params = task.init_with(variant.config, key)
    else:
        params = task.init(key)
    if variant.init_scale is not None:
        scale = variant.init_scale

        def scaled(x: jax.Array, spec: Any) -> jax.Array:
            if spec.kind in ("vector", "scalar"):
                return x
            return (scale * x).astype(x.dtype)

        params = jax.tree.map(scaled, params, task.specs())
    if variant.factors is not None:
        params = jax.tree.map(
            lambda x, s: (x / s).astype(x.dtype), params, variant.factors
        )
    return params


def loss(
    task: Task, variant: Variant, params: Params, key: jax.Array, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss `[]` of reparametrized parameters, without the loss scale."""
    if variant.factors is not None:
        params = jax.tree.map(
            lambda w, s: (s * w).astype(w.dtype), params, variant.factors
        )
    if variant.config is not None:
        assert isinstance(task, Parametric)
        return task.loss_with(variant.config, params, key, batch)
    return task.loss(params, key, batch)


def thin(task: Task, variant: Variant, draws: Draws) -> Draws:
    """Returns draws of training batches, with repeated rows if they vary."""
    if variant.rows is None:
        return draws
    assert isinstance(task, RowBatches)
    return task.thin(draws, variant.rows)


def relabel(task: Task, variant: Variant, batch: Batch, draw: Draws) -> Batch:
    """Returns a training batch, with wrong labels if they vary."""
    if variant.label_noise is None or variant.label_seed is None:
        return batch
    assert isinstance(task, Labelled)
    return task.relabel(batch, draw, variant.label_noise, variant.label_seed)
