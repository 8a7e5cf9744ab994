"""Precision of the per-parameter network: float32, or bfloat16 with float32 sums.

In bfloat16 the inputs of every layer that differ from element to element (features,
hidden units) and the weights they meet are rounded to its 8 bits; products and sums
keep the accumulators' dtype. So do the accumulators themselves, the normalizers, and
the contributions of rows, columns and time, which are vectors and cost nothing. The
product of two bfloat16 numbers is exact in float32, so rounded numbers multiplied in
float32 give what tensor cores give, and all forms compute the same (see `forms`).

Steps change by a few thousandths of their size, as 8 bits in three layers let expect;
orthogonalized ones (CELO2) by some hundredths.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Precision = Literal["float32", "bfloat16"]


def rounded(x: jax.Array, precision: Precision) -> jax.Array:
    """Rounds to the nearest numbers of a precision, in the dtype and range of `x`."""
    if precision == "float32":
        return x
    # Not two conversions: XLA may leave both out, and then nothing is rounded.
    range_of = jnp.finfo(x.dtype).nexp
    return jax.lax.reduce_precision(x, exponent_bits=range_of, mantissa_bits=7)


def product(x: jax.Array, kernel: jax.Array, precision: Precision) -> jax.Array:
    """Returns `x @ kernel` of rounded numbers: `[..., in]` times `[in, out]`.

    It multiplies in bfloat16 itself where that is faster: not on CPUs, nor in wider
    dtypes.
    """
    x, kernel = rounded(x, precision), rounded(kernel, precision)
    narrow = x.dtype == jnp.float32 and jax.default_backend() != "cpu"
    if precision == "float32" or not narrow:
        return x @ kernel
    low = jnp.bfloat16
    return jnp.matmul(x.astype(low), kernel.astype(low), preferred_element_type=x.dtype)
