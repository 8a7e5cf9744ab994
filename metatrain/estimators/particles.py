"""Particles in chunks of fixed size: a vmap in a loop.

The compiled kernels, and therefore the bits of the results, depend on the size of a
chunk alone: not on the number of particles, nor on the devices that share the chunks
(see `metatrain.devices`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")

Reduce = Literal["ordered", "psum"]


def over_particles(
    one: Callable[[Any, Any], tuple[Any, T]],
    shared: Any,
    particles: Any,
    *,
    chunk: int,
    reduce: Reduce = "ordered",
) -> tuple[Any, T]:
    """Maps `one(shared, particle)` over particles.

    Args:
        one: works on one particle; returns what is kept, and a term.
        shared: a pytree that all particles see.
        particles: a pytree with `[N]` in front.
        chunk: particles of one vmapped program; divides N, or exceeds it.
        reduce: psum sums the terms, of which only one chunk exists at a time. In
            float32 an element of the sum differs from that in another order by at most
            N · 2⁻²³ times the sum of the terms' magnitudes.

    Returns:
        What is kept, `[N]` in front; and the terms, `[N]` in front, or their sum.
    """
    of_chunk = jax.vmap(partial(one, shared))
    if reduce == "ordered":
        return _loop(lambda _, chunk: ((), of_chunk(chunk)), (), particles, chunk)[1]

    def body(total: T, chunk: Any) -> tuple[T, Any]:
        kept, terms = of_chunk(chunk)
        return jax.tree.map(lambda s, x: s + x.sum(axis=0), total, terms), kept

    particle = jax.tree.map(lambda x: x[0], particles)
    shapes = jax.eval_shape(lambda p: one(shared, p)[1], particle)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, kept = _loop(body, zeros, particles, chunk)
    return kept, total


def _loop(
    body: Callable[[T, Any], tuple[T, Any]], total: T, particles: Any, chunk: int
) -> tuple[T, Any]:
    """Scans over chunks with a body that compiles alike for any number of them.

    XLA inlines a loop of one round, and a slice that is the whole array; then
    arithmetic is fused, and so rounded, in another way. So the number of rounds is
    hidden from the compiler, and barriers separate the body from the slices.
    """
    num = jax.tree.leaves(particles)[0].shape[0]
    size = min(chunk, num)
    chunks = jax.tree.map(lambda x: x.reshape((-1, size, *x.shape[1:])), particles)

    def take(i: int | jax.Array) -> Any:
        pick = partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
        return jax.lax.optimization_barrier(jax.tree.map(pick, chunks))

    def turn(i: jax.Array, carry: tuple[T, Any]) -> tuple[T, Any]:
        total, outs = carry
        total, new = body(total, take(i))
        put = partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return total, jax.tree.map(put, outs, jax.lax.optimization_barrier(new))

    shapes = jax.eval_shape(lambda total: body(total, take(0))[1], total)
    outs = jax.tree.map(lambda x: jnp.zeros((num // size, *x.shape), x.dtype), shapes)
    rounds = jax.lax.optimization_barrier(jnp.int32(num // size))
    total, outs = jax.lax.fori_loop(0, rounds, turn, (total, outs))
    return total, jax.tree.map(lambda x: x.reshape((num, *x.shape[2:])), outs)
