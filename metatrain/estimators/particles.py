"""How an estimator runs its particles: in chunks of fixed size, one after the other.

A chunk is one vmapped program, and chunks follow one another in a loop. Which kernels
are compiled, and therefore which bits come out, depends on the size of a chunk alone:
not on how many particles there are, nor on the devices that share the chunks (see
`metatrain.devices`).
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
    one: Callable[[Any, Any], Any], shared: Any, particles: Any, *, chunk: int
) -> Any:
    """What `one(shared, particle)` returns for each particle, `[N]` in front.

    Args:
        one: works on one particle.
        shared: a pytree that all particles see.
        particles: a pytree with `[N]` in front.
        chunk: particles of one vmapped program; divides N, or exceeds it.
    """
    of_chunk = jax.vmap(partial(one, shared))
    return _loop(lambda _, chunk: ((), of_chunk(chunk)), (), particles, chunk)[1]


def sum_over_particles(
    one: Callable[[Any, Any], tuple[Any, T]],
    shared: Any,
    particles: Any,
    *,
    chunk: int,
) -> tuple[Any, T]:
    """Like `over_particles`, where `one` returns what is kept and what is summed.

    The terms of no more than one chunk exist at a time. In float32 an element of the
    sum differs from that in another order by at most N · 2⁻²³ times the sum of the
    terms' magnitudes.

    Returns:
        What is kept, `[N]` in front; and the sum.
    """
    of_chunk = jax.vmap(partial(one, shared))

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
    """Like `lax.scan` over chunks, but its body is the same for any number of them.

    XLA dissolves a loop of one round into the program around it, and a slice that is
    the whole array into its user; then arithmetic is fused, and so rounded, in another
    way. So the number of rounds is hidden from the compiler, and barriers keep the body
    apart from the slices.
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
