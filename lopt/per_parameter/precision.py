"""What a per-parameter network multiplies in: float32, or bfloat16 with float32 sums.

In bfloat16 the inputs of every layer that differ from element to element (features,
hidden units) and the weights they meet are rounded to its 8 bits; products and sums
keep the accumulators' dtype. So do the accumulators themselves, the normalizers, and
what rows, columns and time contribute: vectors, whose cost is none. The product of two
bfloat16 numbers is exact in float32, so rounded numbers multiplied in float32 give what
tensor cores give, and all forms compute one thing (see `forms`).

The precision is not a property of θ: the same weights run in both. It is asked for
around a trace (`lopt.wrappers.Bfloat16Features`), and read where a network begins.

Steps change by a few thousandths of their size, as 8 bits in three layers let expect;
orthogonalized ones (CELO2) by some hundredths.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal

import jax
import jax.numpy as jnp

Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass
class Request:
    """That networks within a context compute in a precision."""

    precision: Precision
    met: bool = False
    """Whether there was a network."""


_request: ContextVar[Request | None] = ContextVar("precision", default=None)


@contextlib.contextmanager
def requested(precision: Precision) -> Iterator[Request]:
    """Within it, networks of features are traced in this precision.

    What `jax.jit` traced outside is not taken for it, nor the other way round: within,
    the default precision of products goes by another name, and by that name JAX keeps
    programs apart.
    """
    outer, request = _request.get(), Request(precision)
    token = _request.set(request)
    try:
        with jax.default_matmul_precision(_renamed(precision)):
            yield request
    finally:
        _request.reset(token)
        if outer is not None:
            outer.met |= request.met


_SYNONYMS = (
    ("default", "bfloat16"),
    ("high", "tensorfloat32"),
    ("highest", "float32"),
)
"""Two names that JAX has for one precision of products; None is the first of all."""


def _renamed(precision: Precision) -> Any:
    """The precision of products that is set, by a name that says this one."""
    name: Any = jax.config.jax_default_matmul_precision  # pyright: ignore
    for names in _SYNONYMS:
        if (name or "default") in names:
            return names[1] if precision == "bfloat16" else names[0]
    return name


def current() -> Precision:
    """What a network that is traced now computes in."""
    request = _request.get()
    if request is None:
        return "float32"
    request.met = True
    return request.precision


def rounded(x: jax.Array, precision: Precision) -> jax.Array:
    """The nearest numbers of this precision, in dtype and range of `x`."""
    if precision == "float32":
        return x
    # Not two conversions: XLA may leave both out, and then nothing is rounded.
    range_of = jnp.finfo(x.dtype).nexp
    return jax.lax.reduce_precision(x, exponent_bits=range_of, mantissa_bits=7)


def product(x: jax.Array, kernel: jax.Array, precision: Precision) -> jax.Array:
    """`x @ kernel` of rounded numbers: `[..., in]` times `[in, out]`.

    In bfloat16 itself where that is faster: not on CPUs, nor in wider dtypes.
    """
    x, kernel = rounded(x, precision), rounded(kernel, precision)
    narrow = x.dtype == jnp.float32 and jax.default_backend() != "cpu"
    if precision == "float32" or not narrow:
        return x @ kernel
    low = jnp.bfloat16
    return jnp.matmul(x.astype(low), kernel.astype(low), preferred_element_type=x.dtype)
