"""Newton–Schulz iteration: a matrix's nearest orthogonal one, by products alone.

A quintic polynomial is applied to the singular values five times, which brings all of
them to about 1 (between .7 and 1.2 with the usual coefficients).

References:
    Jordan et al., Muon, https://kellerjordan.github.io/posts/muon (coefficients).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    matrices: jax.Array, num_steps: int = 5, eps: float = 1e-8
) -> jax.Array:
    """Orthogonalizes the last two axes of `[..., m, n]`; a zero matrix stays zero."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else jnp.swapaxes(matrices, -1, -2)
    norm = jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True))
    x = x / (norm + eps)
    for _ in range(num_steps):
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else jnp.swapaxes(x, -1, -2)
