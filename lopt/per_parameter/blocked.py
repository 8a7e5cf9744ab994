"""The per-parameter network for CPUs: a tensor is walked in blocks.

A block's features, hidden units and steps stay in the cache: only the step touches
memory, and no array of `[P, features]` or `[P, hidden]` exists. A first walk sums the
squares that normalize the features; a second one computes the features again (they are
cheap) and runs the network.

The choices below were measured with jax 0.10.2 on 2 cores (AVX2):

* Units stand in front, `[H, block]`, as the accumulators' decays do: nothing is
  transposed, and a product runs at 0.45 of the rate of a large one. A batch of such
  products, as `vmap` over particles makes, is four times slower, so a `vmap` of this
  form becomes a loop over particles.
* Up to `UNROLLED` multiplications per parameter the network is written out with scalar
  weights: half the CPU time of products at 8 units, 0.6 at 16, 0.85 at 32. At 1,600
  multiplications this takes four times the compile time, 10 s more for each shape.
* Features are packed into one array between barriers, and one more stands behind the
  network. Without them XLA copies the network into each consumer and loses its
  vectorization: 20 to 40 times slower.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lopt.per_parameter import first_layer
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.features import FeatureSet, Quantities
from lopt.per_parameter.precision import Precision, rounded
from lopt.placement import vary

BLOCK = 8192
"""Elements of a block, approximately."""

UNROLLED = 600
"""Multiplications per parameter up to which the network is written out."""

_barrier = jax.lax.optimization_barrier


@functools.cache
def program(
    feature_set: FeatureSet,
    epsilons: Epsilons,
    exp_mult: float,
    precision: Precision = "float32",
) -> Callable[..., jax.Array]:
    """Builds (layers, gradient, parameter, state, step) -> displacement `[*S]`.

    The tensor has rank ≥ 2, the layers one or two outputs.
    """

    @jax.custom_batching.custom_vmap
    def single(
        layers: dict[str, dict[str, jax.Array]],
        grad: jax.Array,
        param: jax.Array,
        state: TensorState,
        step: jax.Array,
    ) -> jax.Array:
        q = Quantities(grad, param, state, step, epsilons)
        return _Walk(layers, feature_set, q, precision).displacement(exp_mult)

    @single.def_vmap
    def one_after_another(size: int, batched: tuple, *args: object) -> tuple:
        del size
        leaves, structure = jax.tree.flatten(args)
        flags = jax.tree.leaves(batched)

        def one(own: list[jax.Array]) -> jax.Array:
            rest = iter(own)
            mixed = [
                next(rest) if flag else leaf
                for leaf, flag in zip(leaves, flags, strict=True)
            ]
            return single(*structure.unflatten(mixed))

        own = [x for x, flag in zip(leaves, flags, strict=True) if flag]
        return jax.lax.map(one, own), True

    return single


class _Walk:
    """Two walks over one tensor with one network."""

    def __init__(
        self,
        layers: dict[str, dict[str, jax.Array]],
        feature_set: FeatureSet,
        q: Quantities,
        precision: Precision,
    ) -> None:
        self.q, self.shape = q, q.grad.shape
        self.precision: Precision = precision
        self._differing = lambda x: vary(x, layers, q.grad, q.param, q.state, q.step)
        later = [layers[f"layer_{i}"] for i in range(1, len(layers))]
        self.later = [
            {**layer, "kernel": rounded(layer["kernel"], precision)} for layer in later
        ]
        self.axis, self.length = _blocks(self.shape)
        parts = first_layer.split(layers["layer_0"], feature_set, q)
        self.terms = parts.places[None]
        self.added = [
            (axis, _barrier(values))
            for axis, values in first_layer.contributions(parts, q)
        ]
        factored = q.state.row is not None
        self.factors = _barrier(q.factors()) if factored else None
        normalizers = jax.lax.rsqrt(self._mean_squares() + q.epsilons.normalizer)
        kernel = normalizers[:, None] * first_layer.kernel_of(self.terms)
        self.kernel = rounded(kernel, precision)

    def displacement(self, exp_mult: float) -> jax.Array:
        """Runs the network: the second walk."""
        sizes = [self.kernel.shape, *[layer["kernel"].shape for layer in self.later]]
        unrolled = sum(a * b for a, b in sizes) <= UNROLLED
        network = self._unrolled if unrolled else self._products

        def block(i: jax.Array, steps: jax.Array) -> jax.Array:
            values = rounded(jnp.concatenate(self._values(i)), self.precision)
            values = _barrier(values)
            out = _barrier(first_layer.combine(network(values, i), exp_mult))
            # JAX moves the start of the last block so that it fits.
            start = i * self.length
            return jax.lax.dynamic_update_slice_in_dim(steps, out, start, self.axis)

        start = self._differing(jnp.zeros_like(self.q.grad))
        return jax.lax.fori_loop(0, self._number, block, start)

    @property
    def _number(self) -> int:
        return -(-self.shape[self.axis] // self.length)

    def _mean_squares(self) -> jax.Array:
        """Returns mean squares of the elementwise features, `[F]`: the first walk."""

        def block(i: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
            values = self._values(i)
            # The last block overlaps the one before; what was summed there is masked.
            if self.shape[self.axis] % self.length:
                last = self.shape[self.axis] - self.length
                start = jnp.minimum(i * self.length, last)
                new = start + jnp.arange(self.length) >= i * self.length
                shape = [1] * (1 + len(self.shape))
                shape[1 + self.axis] = self.length
                mask = new.reshape(shape)
                values = [
                    jnp.where(jnp.broadcast_to(mask, x.shape), x, 0) for x in values
                ]
            return [total + x * x for total, x in zip(sums, values, strict=True)]

        shapes = jax.eval_shape(self._values, 0)
        sums = self._differing([jnp.zeros(x.shape, x.dtype) for x in shapes])
        sums = jax.lax.fori_loop(0, self._number, block, sums)
        axes = tuple(range(1, 1 + len(self.shape)))
        return jnp.concatenate([x.sum(axes) for x in sums]) / math.prod(self.shape)

    def _values(self, i: jax.Array | int) -> list[jax.Array]:
        """Returns the elementwise features of a block, `[count, *block]` each."""
        q, state = self.q, self.q.state
        assert q.axes is not None
        d1, d0 = q.axes

        def cut(x: jax.Array | None, without: int | None = None) -> Any:
            return None if x is None else self._part(x, i, 1, without)

        row, column = self.factors or (None, None)
        part = Quantities(
            self._part(q.grad, i),
            self._part(q.param, i),
            TensorState(
                cut(state.momentum),
                cut(state.second_moment),
                cut(state.row, d0),
                cut(state.column, d1),
            ),
            q.step,
            q.epsilons,
            q.axes,
            None if row is None else (cut(row, d0), cut(column, d1)),
        )
        return [feature.formula(part, feature.per) for feature, _ in self.terms]

    def _part(
        self,
        x: jax.Array,
        i: jax.Array | int,
        lead: int = 0,
        without: int | None = None,
    ) -> jax.Array:
        """Cuts block `i` of `[..., *S]`, where `S` may lack an axis."""
        if without == self.axis:
            return x
        axis = lead + self.axis - (without is not None and without < self.axis)
        return jax.lax.dynamic_slice_in_dim(x, i * self.length, self.length, axis)

    def _added(self, i: jax.Array) -> list[jax.Array]:
        """Returns the block of what rows, columns and bias add to the first layer."""
        return [
            x if axis in (-1, self.axis) else self._part(x, i, 1)
            for axis, x in self.added
        ]

    def _products(self, values: jax.Array, i: jax.Array) -> list[jax.Array]:
        """Computes the outputs by products of matrices."""
        hidden = _barrier(jnp.tensordot(self.kernel.T, values, 1))
        for x in self._added(i):
            hidden = hidden + jnp.broadcast_to(x, hidden.shape)
        for layer in self.later[:-1]:
            active = _barrier(self._active(hidden))
            hidden = _barrier(jnp.tensordot(layer["kernel"].T, active, 1))
            bias = layer["bias"].reshape((-1,) + (1,) * len(self.shape))
            hidden = hidden + jnp.broadcast_to(bias, hidden.shape)
        return self._written_out(
            self.later[-1], [_row(hidden, j) for j in _units(hidden)]
        )

    def _unrolled(self, values: jax.Array, i: jax.Array) -> list[jax.Array]:
        """Computes the outputs by arithmetic of scalar weights and whole blocks."""
        hidden = _combinations(self.kernel, [_row(values, k) for k in _units(values)])
        for x in self._added(i):
            hidden = [
                total + jnp.broadcast_to(_row(x, j), total.shape)
                for j, total in enumerate(hidden)
            ]
        for layer in self.later:
            hidden = self._written_out(layer, hidden)
        return hidden

    def _written_out(
        self, layer: dict[str, jax.Array], hidden: list[jax.Array]
    ) -> list[jax.Array]:
        """Applies a layer to rectified units, each an array of its own."""
        totals = _combinations(layer["kernel"], [self._active(x) for x in hidden])
        return [total + layer["bias"][j] for j, total in enumerate(totals)]

    def _active(self, hidden: jax.Array) -> jax.Array:
        return rounded(jnp.maximum(hidden, 0.0), self.precision)


def _blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the axis that is cut, and the length of a block along it.

    The last axis, whose elements lie together, is cut only where a single index of the
    longest other axis is more than a block.
    """
    axis = max(range(len(shape) - 1), key=lambda a: shape[a])
    if math.prod(shape) // shape[axis] > BLOCK:
        axis = max(range(len(shape)), key=lambda a: shape[a])
    fits = max(1, BLOCK * shape[axis] // math.prod(shape))
    return axis, -(-shape[axis] // -(-shape[axis] // fits))


def _combinations(kernel: jax.Array, inputs: list[jax.Array]) -> list[jax.Array]:
    """Sums inputs weighted by the columns of a kernel."""
    totals = []
    for j in range(kernel.shape[1]):
        terms = [x * _entry(kernel, k, j) for k, x in enumerate(inputs)]
        totals.append(functools.reduce(jax.lax.add, terms))
    return totals


def _entry(kernel: jax.Array, k: int, j: int) -> jax.Array:
    return jax.lax.squeeze(jax.lax.slice(kernel, (k, j), (k + 1, j + 1)), (0, 1))


def _row(x: jax.Array, k: int) -> jax.Array:
    return jax.lax.index_in_dim(x, k, keepdims=False)


def _units(x: jax.Array) -> range:
    return range(x.shape[0])
