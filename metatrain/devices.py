"""Devices that share the particles of a run: a mesh, and what lies where on it.

The mesh has one axis. Particles, `[N]` in front, are cut along it and data lies on
every device; θ and the state of the outer optimizer lie on the first device of each
process. Where the devices belong to several processes, an array that is cut is one of
all of them: each process holds its part, and whatever moves it must be called by all.

A program that XLA partitions over devices is simplified in another order than the same
program for one device, and then a quotient becomes a product with a reciprocal here and
not there: last bits differ (jaxlib 0.10.2; Adam as the inner optimizer shows it). So
what computes is never partitioned. Each device runs, on its own particles, the program
that one device alone would run on all of them; the terms are gathered to every process
and averaged there, as a whole and in order, again by the program of one device. Between
them `whole` and `summed` move data, and do not compute but for the sum of `summed`,
whose order, and with it the last bits, depend on the devices.
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
    """A mesh of the devices of every process; None where there is one device in all.

    Args:
        per_process: how many devices of each process; all of them by default.

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
    # In jax 0.10 axes are Explicit by default, and shapes would carry them.
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def largest_share(num_chunks: int, most: int) -> int:
    """How many devices, at most `most`, can share so many chunks evenly."""
    fitting = range(1, min(most, num_chunks) + 1)
    return max(n for n in fitting if num_chunks % n == 0)


def check_shares(num_chunks: int, mesh: Mesh | None) -> None:
    """Refuses a mesh that cannot share the chunks evenly.

    Raises:
        ValueError: naming both numbers, and what would be right.
    """
    check_division(num_chunks, 1 if mesh is None else mesh.size)


def check_division(num_chunks: int, num_devices: int) -> None:
    """Refuses a number of devices that cannot share the chunks evenly.

    Raises:
        ValueError: naming both numbers, and what would be right.
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
    """Puts values that every process has on every device.

    Args:
        tree: arrays in the host's memory or on its own devices.
        mesh: where to; None leaves them where they are.
    """
    return tree if mesh is None else _put(tree, NamedSharding(mesh, P()))


def shard(tree: T, mesh: Mesh | None) -> T:
    """Cuts values that every process has along their first axis, `[N]`."""
    return tree if mesh is None else _put(tree, NamedSharding(mesh, P(AXIS)))


def own_devices(mesh: Mesh) -> list[Any]:
    """The mesh's devices of this process, in the order of the mesh."""
    me = jax.process_index()
    return [device for device in mesh.devices.flat if device.process_index == me]


def own_part(num: int, mesh: Mesh | None) -> range:
    """Which of `num` particles this process has; a step is the share of a device."""
    if mesh is None:
        return range(0, num, num)
    share = num // mesh.size
    own = own_devices(mesh)
    first = list(mesh.devices.flat).index(own[0]) * share
    return range(first, first + len(own) * share, share)


def shard_own(tree: T, mesh: Mesh | None) -> T:
    """Puts what `own_part` says on this process's devices, as its part of `[N]`."""
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, P(AXIS))

    def put(x: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(lambda x: _through_data(put, x), tree)


def constrain(tree: T, mesh: Mesh | None) -> T:
    """Says, under `jit`, that arrays are cut along `[N]`."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P(AXIS)))


def on_first(tree: T, mesh: Mesh | None) -> T:
    """Puts what every process has on its first device."""
    return tree if mesh is None else jax.device_put(tree, own_devices(mesh)[0])


def shares(tree: T, mesh: Mesh) -> list[T]:
    """What each device of this process has: its part of what is cut, the rest whole.

    Args:
        tree: arrays on the mesh, or on one device.
        mesh: the devices.
    """
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
    """`work` of each row of arguments; they are compiled and begun side by side."""
    rows = list(zip(*columns, strict=True))
    if len(rows) == 1:
        return [work(*rows[0])]
    with ThreadPoolExecutor(len(rows)) as pool:
        return list(pool.map(lambda row: work(*row), rows))


def assembled(parts: Sequence[T], mesh: Mesh) -> T:
    """Parts on this process's devices as arrays that are cut along their first axis."""
    sharding = NamedSharding(mesh, P(AXIS))

    def join(*pieces: jax.Array) -> jax.Array:
        shape = (pieces[0].shape[0] * mesh.size, *pieces[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(pieces))

    return jax.tree.map(join, *parts)


def whole(tree: T, mesh: Mesh) -> T:
    """Arrays that are cut, as a whole on this process's first device."""
    return local(_everywhere(tree, mesh))


def summed(tree: T, mesh: Mesh) -> T:
    """`[1, ...]` on each device, added up over devices, on this process's first one."""
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
    """This process's own copy, on one device, of arrays that lie on every device.

    What is computed with it is this process's own affair.
    """

    def pick(x: Any) -> Any:
        if not isinstance(x, jax.Array) or isinstance(x, Tracer):
            return x
        if len(x.sharding.device_set) == 1:
            return x
        if not x.is_fully_replicated:
            raise ValueError(f"an array {x.shape} cut by {x.sharding} has no own copy")
        return _through_data(lambda data: data.addressable_data(0), x)

    return jax.tree.map(pick, tree)


def gather(tree: T, mesh: Mesh | None) -> T:
    """Whole arrays in the host's memory; all processes must call it.

    What it returns does not depend on how many devices shared the particles. One array
    at a time passes through a device as a whole.
    """
    if mesh is None:
        return tree

    def whole(x: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(lambda x: _through_data(whole, x), tree)


def broadcast(tree: T) -> T:
    """What process 0 has, for all, in the host's memory; all processes must call it.

    Args:
        tree: of the same shapes and dtypes everywhere; values matter on process 0.

    Returns:
        The same bytes everywhere: they are summed as integers, since a sum of floats
        would turn −0 into +0.
    """
    if jax.process_count() == 1:
        return tree

    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    data = np.concatenate(
        [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in leaves]
    )
    sent = np.zeros(-(-data.size // _PIECE) * _PIECE, np.uint8)
    sent[: data.size] = data
    for start in range(0, data.size, _PIECE):  # of one size: one program
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
    """Applies a function to an array, or to the integers that typed keys consist of."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = function(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return function(x)
