"""Random keys by purpose.

Every key is derived from the root key of a run, the outer step, and a name, so adding a
consumer disturbs no other and nothing random needs to be stored in a checkpoint.
"""

from __future__ import annotations

import zlib

import jax


def stream(key: jax.Array, purpose: str) -> jax.Array:
    """The key for one named purpose."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))
