"""How a network of features is computed: one algebra in three forms, chosen by a rule.

* plain: whole arrays, `per_parameter_mlp.apply`. It runs everywhere, in every dtype and
  rank; the other two are tested against it.
* blocked: a tensor is walked in blocks that stay in the cache (`blocked`). For CPUs.
* kernel: one Pallas kernel (`kernels`). For GPUs.

The rule looks at the backend and at the tensor alone, at the time of tracing:

| backend | tensor | form |
|---|---|---|
| cpu | rank ≥ 2, at least `BLOCKED_FROM` elements | blocked |
| gpu | rank 2, float32, at least `KERNEL_FROM` elements | kernel |
| any | everything else | plain |
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import jax
import jax.numpy as jnp

Form = Literal["plain", "blocked", "kernel"]

BLOCKED_FROM = 2**14
"""Elements from which the loops of the blocked form cost less than they bring."""

KERNEL_FROM = 4096
"""Elements from which a kernel's launch costs less than it brings."""

_forced: ContextVar[Form | None] = ContextVar("form", default=None)


def choose(shape: tuple[int, ...], dtype: jnp.dtype) -> Form:
    """The form in which a tensor of this shape is computed on the default backend."""
    forced, backend, size = _forced.get(), jax.default_backend(), math.prod(shape)
    if len(shape) < 2 or size == 0:
        return "plain"
    if forced == "kernel" and len(shape) != 2:
        return "plain"
    if forced is not None:
        return forced
    if backend == "cpu" and size >= BLOCKED_FROM:
        return "blocked"
    matrix = len(shape) == 2 and dtype == jnp.float32
    if backend == "gpu" and matrix and size >= KERNEL_FROM:
        return "kernel"
    return "plain"


@contextlib.contextmanager
def forced(form: Form) -> Iterator[None]:
    """Within it a form is taken wherever it can be: for tests and measurements.

    Programs that were traced before keep the form that they have.
    """
    token = _forced.set(form)
    try:
        yield
    finally:
        _forced.reset(token)
