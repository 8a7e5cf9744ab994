"""How an estimator runs its particles: in chunks of fixed size, shared by devices.

A chunk is one vmapped program, and chunks follow one another. Which kernels are
compiled, and therefore which bits come out, depends on the size of a chunk alone: not
on how many particles there are, nor on the devices that share the chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

AXIS = "particles"
"""Name of the mesh's only axis."""


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
            the chunks.
    """
    num = jax.tree.leaves(particles)[0].shape[0]
    chunk = min(chunk, num)

    def split(x: jax.Array) -> jax.Array:
        return x.reshape((num // chunk, chunk, *x.shape[1:]))

    def merge(x: jax.Array) -> jax.Array:
        return x.reshape((num, *x.shape[2:]))

    def walk(shared: Any, chunks: Any) -> Any:
        return jax.lax.map(jax.vmap(partial(one, shared)), chunks)

    if mesh is not None:
        walk = jax.shard_map(
            walk,
            mesh=mesh,
            in_specs=(P(), P(AXIS)),
            out_specs=P(AXIS),
            check_vma=False,
        )
    return jax.tree.map(merge, walk(shared, jax.tree.map(split, particles)))
