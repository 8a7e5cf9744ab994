"""Devices that share the particles of a run.

The mesh has one axis. Particles, `[N]` in front, are sharded along it and data is
replicated; θ and the state of the outer optimizer lie on the first device of each
process. A sharded array spans the devices of all processes: each process holds its
part, and functions that move it must be called by all.

XLA simplifies a partitioned program in another order than the same program for one
device, so last bits differ (jaxlib 0.10.2; Adam as the inner optimizer shows it).
Programs that compute are therefore never partitioned. Each device runs, on its own
particles, the program that a single device would run on all of them; the terms are
gathered to every process and averaged there, in order, by a program of one device.
`whole` and `summed` move data between them; only `summed` adds, and the order of its
sum, and so the last bits, depend on the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

T = TypeVar("T")

AXIS = "particles"
"""Name of the mesh's only axis."""

_PIECE = 2**20  # bytes of one broadcast


def make_mesh(per_process: int | None = None) -> Mesh | None:
    """Returns a mesh of the devices of every process; None for a single device.

    Args:
        per_process: devices of each process; all of them by default.

    Raises:
        ValueError: if a process has fewer.
    """
    of_process: dict[int, list[Any]] = {}
    for device in sorted(jax.devices(), key=lambda d: (d.process_index, d.id)):
        of_process.setdefault(device.process_index, []).append(device)
    fewest = min(map(len, of_process.values()))
    wanted = fewest if per_process is None else per_process
    if not 1 <= wanted <= fewest:
        raise ValueError(
            f"devices = {wanted}: this backend ({jax.default_backend()}) has {fewest} "
            f"for each process; ask for 1 to {fewest}"
        )
    chosen = [device for devices in of_process.values() for device in devices[:wanted]]
    if len(chosen) == 1:
        return None
    # Explicit axes, the default since jax 0.10, would enter the types of all arrays.
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def largest_share(num_chunks: int, most: int) -> int:
    """Returns the most devices, up to `most`, that can share the chunks evenly."""
    fitting = range(1, min(most, num_chunks) + 1)
    return max(n for n in fitting if num_chunks % n == 0)


def check_shares(num_chunks: int, num_devices: int) -> None:
    """Checks that the devices can share the chunks evenly.

    Raises:
        ValueError: naming both numbers and the fitting ones.
    """
    if num_chunks % num_devices == 0:
        return
    fitting = [n for n in range(1, num_chunks + 1) if num_chunks % n == 0]
    chunks = "1 chunk" if num_chunks == 1 else f"{num_chunks} chunks"
    raise ValueError(
        f"{chunks} of particles cannot be shared by {num_devices} devices: "
        f"take {' or '.join(map(str, fitting))}, or an estimator whose number "
        f"of chunks (num_pairs / chunk) is a multiple of {num_devices}"
    )


def replicate(tree: T, mesh: Mesh | None) -> T:
    """Replicates values that every process has; None leaves them where they are."""
    return tree if mesh is None else _put(tree, NamedSharding(mesh, P()))


def shard(tree: T, mesh: Mesh | None) -> T:
    """Shards values that every process has along their first axis, `[N]`."""
    return tree if mesh is None else _put(tree, NamedSharding(mesh, P(AXIS)))


def own_devices(mesh: Mesh) -> list[Any]:
    """Returns this process's devices, in the order of the mesh."""
    me = jax.process_index()
    return [device for device in mesh.devices.flat if device.process_index == me]


def own_part(num: int, mesh: Mesh | None) -> range:
    """Returns this process's range of `num` particles; its step is a device's share."""
    if mesh is None:
        return range(0, num, num)
    share = num // mesh.size
    own = own_devices(mesh)
    first = list(mesh.devices.flat).index(own[0]) * share
    return range(first, first + len(own) * share, share)


def shard_own(tree: T, mesh: Mesh | None) -> T:
    """Puts this process's part of `[N]` (see `own_part`) on its devices."""
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, P(AXIS))

    def put(x: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(lambda x: _through_data(put, x), tree)


def constrain(tree: T, mesh: Mesh | None) -> T:
    """Constrains arrays, under `jit`, to be sharded along `[N]`."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P(AXIS)))


def on_first(tree: T, mesh: Mesh | None) -> T:
    """Puts values that every process has on its first device."""
    return tree if mesh is None else jax.device_put(tree, own_devices(mesh)[0])


def shares(tree: T, mesh: Mesh) -> list[T]:
    """Returns, for each device of this process, its shards and copies of the rest."""
    own = own_devices(mesh)

    def pieces(x: Any) -> list[Any]:
        sharding = getattr(x, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh == mesh:
            of_device = {shard.device: shard.data for shard in x.addressable_shards}
            return [of_device[device] for device in own]
        return [jax.device_put(x, device) for device in own]

    leaves, structure = jax.tree.flatten(tree)
    columns = [pieces(x) for x in leaves]
    return [
        jax.tree.unflatten(structure, [column[place] for column in columns])
        for place in range(len(own))
    ]


def each(work: Callable[..., T], *columns: Sequence[Any]) -> list[T]:
    """Calls `work` with each row of arguments, in threads, so compilations overlap."""
    rows = list(zip(*columns, strict=True))
    if len(rows) == 1:
        return [work(*rows[0])]
    with ThreadPoolExecutor(len(rows)) as pool:
        return list(pool.map(lambda row: work(*row), rows))


def assembled(parts: Sequence[T], mesh: Mesh) -> T:
    """Joins parts on this process's devices to arrays sharded along `[N]`."""
    sharding = NamedSharding(mesh, P(AXIS))

    def join(*pieces: jax.Array) -> jax.Array:
        shape = (pieces[0].shape[0] * mesh.size, *pieces[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(pieces))

    return jax.tree.map(join, *parts)


def whole(tree: T, mesh: Mesh) -> T:
    """Gathers sharded arrays on this process's first device."""
    return local(_everywhere(tree, mesh))


def summed(tree: T, mesh: Mesh) -> T:
    """Sums `[1, ...]` on each device over devices, on this process's first device."""
    return local(_sum(tree, mesh))


@partial(jax.jit, static_argnums=1)
def _everywhere(tree: T, mesh: Mesh) -> T:
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


@partial(jax.jit, static_argnums=1)
def _sum(tree: T, mesh: Mesh) -> T:
    add = partial(jax.lax.psum, axis_name=AXIS)
    return jax.shard_map(
        lambda part: jax.tree.map(add, part), mesh=mesh, in_specs=P(AXIS), out_specs=P()
    )(tree)


def local(tree: T) -> T:
    """Returns this process's own copy, on one device, of replicated arrays."""

    def pick(x: Any) -> Any:
        if not isinstance(x, jax.Array) or isinstance(x, Tracer):
            return x
        if len(x.sharding.device_set) == 1:
            return x
        if not x.is_fully_replicated:
            raise ValueError(f"an array {x.shape} sharded by {x.sharding} has no copy")
        return _through_data(lambda data: data.addressable_data(0), x)

    return jax.tree.map(pick, tree)


def gather(tree: T, mesh: Mesh | None) -> T:
    """Gathers whole arrays in the host's memory; all processes must call it.

    One array at a time passes through a device as a whole.
    """
    if mesh is None:
        return tree

    def whole(x: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(lambda x: _through_data(whole, x), tree)


def broadcast(tree: T) -> T:
    """Sends process 0's values to the host memory of all, who must all call it.

    Args:
        tree: of the same shapes and dtypes everywhere.
    """
    if jax.process_count() == 1:
        return tree
    # As bytes: the broadcast is a sum, and a sum of floats would turn −0 into +0.
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    data = np.concatenate(
        [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in leaves]
    )
    sent = np.zeros(-(-data.size // _PIECE) * _PIECE, np.uint8)
    sent[: data.size] = data
    # Pieces of one size, so that one program is compiled.
    for start in range(0, data.size, _PIECE):
        piece = slice(start, start + _PIECE)
        sent[piece] = multihost_utils.broadcast_one_to_all(sent[piece])
    ends = np.cumsum([0, *(x.nbytes for x in leaves)])
    return jax.tree.unflatten(
        structure,
        [
            sent[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
            for begin, x in zip(ends, leaves, strict=False)
        ],
    )


def _put(tree: T, sharding: Sharding) -> T:
    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        array = np.asarray(x)
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )

    return jax.tree.map(lambda x: _through_data(put, x), tree)


def _through_data(function: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function to an array, or to the integers behind typed keys."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = function(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return function(x)
