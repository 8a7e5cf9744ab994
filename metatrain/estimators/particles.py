"""How an estimator runs its particles: in chunks of fixed size, shared by devices.

A chunk is one vmapped program, and chunks follow one another in a loop. Which kernels
are compiled, and therefore which bits come out, depends on the size of a chunk alone:
not on how many particles there are, nor on the devices that share the chunks.

What comes of it per particle is gathered to every device and summed there as a whole,
in the order of the particles (`ordered_mean`): so the mean too is the same bits for any
number of devices. Where `[N, D]` terms are too large for that, each device adds up its
own, and one `psum` adds the sums (`sum_over_particles`): then the order of the sum, and
with it the last bits, depend on the devices.

What a partitioned program computes may still be simplified in another order than the
same program for one device (a quotient becomes a product with a reciprocal): with
small_fc as the inner optimizer the bits agree, with Adam last bits differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from metatrain.devices import AXIS, check_shares, constrain

T = TypeVar("T")

Reduce = Literal["ordered", "psum"]


def over_particles(
    one: Callable[[Any, Any], Any],
    shared: Any,
    particles: Any,
    *,
    chunk: int,
    mesh: Mesh | None = None,
) -> Any:
    """What `one(shared, particle)` returns for each particle, `[N]` in front.

    Args:
        one: works on one particle.
        shared: a pytree that all particles see.
        particles: a pytree with `[N]` in front.
        chunk: particles of one vmapped program; divides N, or exceeds it.
        mesh: devices along `AXIS` that share the chunks; their number divides that of
            the chunks. What is returned is cut along `[N]` then.
    """

    def walk(shared: Any, particles: Any) -> Any:
        of_chunk = jax.vmap(partial(one, shared))
        return _loop(lambda _, chunk: ((), of_chunk(chunk)), (), particles, size)[1]

    size = _chunk_size(particles, chunk, mesh)
    return _on(mesh, walk, P(AXIS))(shared, particles)


def sum_over_particles(
    one: Callable[[Any, Any], tuple[Any, T]],
    shared: Any,
    particles: Any,
    *,
    chunk: int,
    mesh: Mesh | None = None,
) -> tuple[Any, T]:
    """Like `over_particles`, where `one` returns what is kept and what is summed.

    The terms of no more than one chunk exist at a time on a device. A sum's elements
    differ from those of another order by at most N · 2⁻²³ times the sum of the terms'
    magnitudes (float32).

    Returns:
        What is kept, `[N]` in front; and the sum over all particles.
    """

    def walk(shared: Any, particles: Any) -> Any:
        of_chunk = jax.vmap(partial(one, shared))

        def body(total: T, chunk: Any) -> tuple[T, Any]:
            kept, terms = of_chunk(chunk)
            return jax.tree.map(lambda s, x: s + x.sum(axis=0), total, terms), kept

        particle = jax.tree.map(lambda x: x[0], particles)
        shapes = jax.eval_shape(lambda p: one(shared, p)[1], particle)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, kept = _loop(body, zeros, particles, size)
        return kept, total if mesh is None else jax.lax.psum(total, AXIS)

    size = _chunk_size(particles, chunk, mesh)
    return _on(mesh, walk, (P(AXIS), P()))(shared, particles)


def ordered_mean(terms: T, mesh: Mesh | None = None) -> tuple[T, T]:
    """The mean over particles, in their order, on every device.

    Args:
        terms: `[N]` in front, cut along it on a mesh.
        mesh: the devices.

    Returns:
        The mean, and the terms as a whole.
    """
    terms = constrain(terms, mesh)
    # Without the barriers the mean moves into the programs around it, which differ: on
    # a mesh XLA would sum the parts and then the sums.
    terms = jax.lax.optimization_barrier(terms)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), terms)
    return jax.lax.optimization_barrier(mean), terms


def _chunk_size(particles: Any, chunk: int, mesh: Mesh | None) -> int:
    num = jax.tree.leaves(particles)[0].shape[0]
    size = min(chunk, num)
    check_shares(num // size, mesh)
    return size


def _loop(
    body: Callable[[T, Any], tuple[T, Any]], total: T, particles: Any, size: int
) -> tuple[T, Any]:
    """Like `lax.scan` over chunks of `size` particles, but one chunk is a loop too.

    XLA dissolves a loop of one round into the program around it, where its arithmetic
    may be fused, and so rounded, in another way than where a device has two chunks. So
    the number of rounds is hidden from the compiler.
    """
    num = jax.tree.leaves(particles)[0].shape[0]
    chunks = jax.tree.map(lambda x: x.reshape((-1, size, *x.shape[1:])), particles)

    def take(i: int | jax.Array) -> Any:
        pick = partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
        return jax.tree.map(pick, chunks)

    def turn(i: jax.Array, carry: tuple[T, Any]) -> tuple[T, Any]:
        total, outs = carry
        total, new = body(total, jax.lax.optimization_barrier(take(i)))
        new = jax.lax.optimization_barrier(new)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return total, jax.tree.map(put, outs, new)

    shapes = jax.eval_shape(lambda total: body(total, take(0))[1], total)
    outs = jax.tree.map(lambda x: jnp.zeros((num // size, *x.shape), x.dtype), shapes)
    rounds = jax.lax.optimization_barrier(jnp.int32(num // size))
    total, outs = jax.lax.fori_loop(0, rounds, turn, (total, outs))
    return total, jax.tree.map(lambda x: x.reshape((num, *x.shape[2:])), outs)


def _on(mesh: Mesh | None, walk: Callable[..., Any], out: Any) -> Callable[..., Any]:
    """The walk over a device's own particles, on each device of the mesh."""
    if mesh is None:
        return walk
    return jax.shard_map(
        walk, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=out, check_vma=False
    )
