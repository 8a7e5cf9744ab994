"""The form of a network of features for CPUs: a tensor is walked in blocks.

A block's features, hidden units and steps stay in the cache, so of all that is computed
per parameter only the step touches memory, and no array of `[P, features]` or
`[P, hidden]` exists. A first walk sums the squares that normalize the features, a
second one computes them again (they are cheap) and runs the network.

What XLA's CPU compiler rewards, measured with jax 0.10.2 on 2 cores (AVX2):

* Units stand in front, `[H, block]`, as the accumulators' decays do: nothing is
  transposed, and a product of two matrices runs at 0.45 of the rate of a large one.
  The same product with a batch of matrices, which `vmap` over particles makes of it,
  is four times slower. So a `vmap` of this form becomes a loop: particles follow one
  another, and the cores share the blocks.
* Up to `UNROLLED` multiplications per parameter the network is written out with scalar
  weights, one loop over the parameters without any hidden array: half the CPU time of
  products of such thin matrices at 8 units, 0.6 at 16, 0.85 at 32. There 1,600
  multiplications cost four times the compile time, 10 s more for each shape, so from
  there on it is products.
* Features are packed into one array, and barriers stand around it and behind the
  network. Without them XLA copies the network into each consumer, and a fusion of many
  inputs loses its vectorization: 20 to 40 times slower.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lopt.per_parameter import first_layer
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import Epsilons
from lopt.per_parameter.features import FeatureSet, Quantities
from lopt.per_parameter.precision import Precision, rounded

BLOCK = 8192
"""Elements of a block, about."""

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
    """(layers, gradient, parameter, state, step) -> displacement `[*S]`.

    Of a tensor of rank ≥ 2; the layers have one or two outputs.
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
    """One tensor, one network."""

    def __init__(
        self,
        layers: dict[str, dict[str, jax.Array]],
        feature_set: FeatureSet,
        q: Quantities,
        precision: Precision,
    ) -> None:
        self.q, self.shape = q, q.grad.shape
        self.precision: Precision = precision
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
        """The second walk."""
        sizes = [self.kernel.shape, *[layer["kernel"].shape for layer in self.later]]
        unrolled = sum(a * b for a, b in sizes) <= UNROLLED
        network = self._unrolled if unrolled else self._products

        def block(i: jax.Array, steps: jax.Array) -> jax.Array:
            values = rounded(jnp.concatenate(self._values(i)), self.precision)
            values = _barrier(values)
            out = _barrier(first_layer.combine(network(values, i), exp_mult))
            start = i * self.length  # the last block is moved so that it fits
            return jax.lax.dynamic_update_slice_in_dim(steps, out, start, self.axis)

        return jax.lax.fori_loop(0, self._number, block, jnp.zeros_like(self.q.grad))

    @property
    def _number(self) -> int:
        return -(-self.shape[self.axis] // self.length)

    def _mean_squares(self) -> jax.Array:
        """Of every elementwise feature, `[F]`: the first walk."""

        def block(i: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
            values = self._values(i)
            if self.shape[self.axis] % self.length:  # the last overlaps the one before
                start = jnp.minimum(
                    i * self.length, self.shape[self.axis] - self.length
                )
                new = start + jnp.arange(self.length) >= i * self.length
                shape = [1] * (1 + len(self.shape))
                shape[1 + self.axis] = self.length
                mask = new.reshape(shape)
                values = [
                    jnp.where(jnp.broadcast_to(mask, x.shape), x, 0) for x in values
                ]
            return [total + x * x for total, x in zip(sums, values, strict=True)]

        shapes = jax.eval_shape(self._values, 0)
        sums = [jnp.zeros(x.shape, x.dtype) for x in shapes]
        sums = jax.lax.fori_loop(0, self._number, block, sums)
        axes = tuple(range(1, 1 + len(self.shape)))
        return jnp.concatenate([x.sum(axes) for x in sums]) / math.prod(self.shape)

    def _values(self, i: jax.Array | int) -> list[jax.Array]:
        """Elementwise features of a block, `[count, *block]` each."""
        q, state = self.q, self.q.state
        assert q.axes is not None
        d1, d0 = q.axes
        part = Quantities(
            self._part(q.grad, i),
            self._part(q.param, i),
            TensorState(
                self._part(state.momentum, i, 1),
                None
                if state.second_moment is None
                else self._part(state.second_moment, i, 1),
                None if state.row is None else self._part(state.row, i, 1, d0),
                None if state.column is None else self._part(state.column, i, 1, d1),
            ),
            q.step,
            q.epsilons,
            q.axes,
            None
            if self.factors is None
            else (
                self._part(self.factors[0], i, 1, d0),
                self._part(self.factors[1], i, 1, d1),
            ),
        )
        return [feature.formula(part, feature.per) for feature, _ in self.terms]

    def _part(
        self,
        x: jax.Array,
        i: jax.Array | int,
        lead: int = 0,
        without: int | None = None,
    ) -> jax.Array:
        """Block `i` of `[..., *S]`, where `S` may lack an axis."""
        if without == self.axis:
            return x
        axis = lead + self.axis - (without is not None and without < self.axis)
        return jax.lax.dynamic_slice_in_dim(x, i * self.length, self.length, axis)

    def _added(self, i: jax.Array) -> list[jax.Array]:
        """What rows, columns and bias contribute, `[H, *block]` or 1 along an axis."""
        return [
            x if axis in (-1, self.axis) else self._part(x, i, 1)
            for axis, x in self.added
        ]

    def _products(self, values: jax.Array, i: jax.Array) -> list[jax.Array]:
        """The network's outputs by products of matrices."""
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
        """The network's outputs as arithmetic of scalar weights and whole blocks."""
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
        """A layer on rectified units, each an array of its own."""
        totals = _combinations(layer["kernel"], [self._active(x) for x in hidden])
        return [total + layer["bias"][j] for j, total in enumerate(totals)]

    def _active(self, hidden: jax.Array) -> jax.Array:
        return rounded(jnp.maximum(hidden, 0.0), self.precision)


def _blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    """The axis that is cut, and how long a block is along it.

    The longest but the last, whose elements lie together; the last where others are
    so short that a single index of theirs is more than a block.
    """
    axis = max(range(len(shape) - 1), key=lambda a: shape[a])
    if math.prod(shape) // shape[axis] > BLOCK:
        axis = max(range(len(shape)), key=lambda a: shape[a])
    fits = max(1, BLOCK * shape[axis] // math.prod(shape))
    return axis, -(-shape[axis] // -(-shape[axis] // fits))


def _combinations(kernel: jax.Array, inputs: list[jax.Array]) -> list[jax.Array]:
    """Sums of inputs, weighted by the columns of a kernel."""
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
