"""Execution of the per-parameter network: one algebra, three forms, two precisions.

* plain: whole arrays, `network.apply`. It runs everywhere, in every dtype and rank; the
  other two are tested against it.
* blocked: a tensor is walked in blocks that stay in the cache (`blocked`). For CPUs.
* kernel: one Pallas kernel (`kernels`). For GPUs.

By default a rule chooses the form from the backend and the tensor, at trace time:

| backend | tensor | form |
|---|---|---|
| cpu | rank ≥ 2, at least `BLOCKED_FROM` elements | blocked |
| gpu | rank 2, float32, at least `KERNEL_FROM` elements | kernel |
| any | everything else | plain |
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from lopt.base import LearnedOptimizer
from lopt.per_parameter.precision import Precision

T = TypeVar("T")
Form = Literal["plain", "blocked", "kernel"]

BLOCKED_FROM = 2**14
"""Elements from which the loops of the blocked form cost less than they bring."""

KERNEL_FROM = 4096
"""Elements from which a kernel's launch costs less than it brings."""


@configuration
class Execution:
    """Form and precision of a per-parameter network; not properties of θ.

    The same weights run in all of them, so released artifacts leave them out.
    """

    form: Literal["auto", "plain", "blocked", "kernel"] = "auto"
    """Form of all tensors that it can compute; auto follows the rule above."""
    precision: Precision = "float32"
    """Precision of the products (see `lopt.per_parameter.precision`)."""


def choose(
    shape: tuple[int, ...], dtype: jnp.dtype, wanted: Form | Literal["auto"] = "auto"
) -> Form:
    """Returns the form in which a tensor is computed on the default backend."""
    backend, size = jax.default_backend(), math.prod(shape)
    if len(shape) < 2 or size == 0:
        return "plain"
    if wanted == "kernel" and len(shape) != 2:
        return "plain"
    if wanted != "auto":
        return wanted
    if backend == "cpu" and size >= BLOCKED_FROM:
        return "blocked"
    matrix = len(shape) == 2 and dtype == jnp.float32
    if backend == "gpu" and matrix and size >= KERNEL_FROM:
        return "kernel"
    return "plain"


class FixedPrecision:
    """Base of wrappers that set the precision of all networks that they wrap."""

    inner: LearnedOptimizer
    wrapped_precision: ClassVar[Precision]


def with_execution(optimizer: T, **changes: Any) -> T:
    """Returns the optimizer, and all that it wraps, executed differently.

    A `FixedPrecision` wrapper stays, and still sets the precision.

    Args:
        optimizer: any; without a per-parameter network it is returned as it is.
        changes: fields of `Execution`.
    """
    if not dataclasses.is_dataclass(optimizer):
        return optimizer
    found: dict[str, Any] = {}
    for field in dataclasses.fields(optimizer):
        value = getattr(optimizer, field.name)
        if isinstance(value, Execution):
            found[field.name] = dataclasses.replace(value, **changes)
        elif isinstance(value, LearnedOptimizer):
            found[field.name] = with_execution(value, **changes)
    return dataclasses.replace(optimizer, **found)  # pyright: ignore


def in_precision(optimizer: Any, precision: Precision) -> Any:
    """Returns the optimizer, its per-parameter networks in another precision.

    `FixedPrecision` wrappers are removed, since they would set their own again.

    Raises:
        ValueError: if this is not float32, and neither the optimizer nor what it wraps
            has such a network.
    """
    if precision != "float32" and not precisions(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} has no per-parameter network: {precision} "
            "would change nothing"
        )
    return with_execution(_unfixed(optimizer), precision=precision)


def precisions(optimizer: Any) -> set[Precision]:
    """Returns the precisions in which an optimizer's per-parameter networks compute."""
    if not dataclasses.is_dataclass(optimizer):
        return set()
    found: set[Precision] = set()
    for field in dataclasses.fields(optimizer):
        value = getattr(optimizer, field.name)
        if isinstance(value, Execution):
            found.add(value.precision)
        elif isinstance(value, LearnedOptimizer):
            found |= precisions(value)
    if found and isinstance(optimizer, FixedPrecision):
        return {optimizer.wrapped_precision}
    return found


def _unfixed(optimizer: Any) -> Any:
    """Returns the optimizer without the `FixedPrecision` wrappers in it."""
    if isinstance(optimizer, FixedPrecision):
        return _unfixed(optimizer.inner)
    if not dataclasses.is_dataclass(optimizer):
        return optimizer
    inner = {
        field.name: _unfixed(value)
        for field in dataclasses.fields(optimizer)
        if isinstance(value := getattr(optimizer, field.name), LearnedOptimizer)
    }
    return dataclasses.replace(optimizer, **inner)  # pyright: ignore
