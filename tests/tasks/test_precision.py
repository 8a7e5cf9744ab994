"""Given parameters in bfloat16, every network multiplies in bfloat16."""

from __future__ import annotations

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.base import sample
from tasks.description import missing_data
from tasks.registry import NAMED

KEY = jax.random.key(3)


def products(jaxpr):
    """Operand dtypes of every product and convolution of a program, loops included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append({str(x.aval.dtype) for x in equation.invars[:2]})
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += products(inner)
    return found


FAMILIES = (
    *("mlp", "mlp_norm", "convnet", "resnet", "vit", "transformer"),
    *("transformer_tied", "lstm", "gru", "vae", "vq"),
)


def prepared(name):
    task = NAMED[name].task()
    if reason := missing_data(task):
        pytest.skip(reason)
    batch = sample(task, task.load_data(), KEY)
    params = task.init(KEY)
    return task, params, batch


def low(params):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


# Tracing a family takes 2 to 15 seconds.
SOON = {"mlp", "lstm", "autoencoder"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SOON else [pytest.mark.slow])
        for name in FAMILIES
    ],
)
def test_every_product_is_in_the_dtype_of_the_parameters(name):
    task, params, batch = prepared(name)
    for tree, dtype in ((params, "float32"), (low(params), "bfloat16")):
        program = jax.make_jaxpr(lambda p: task.loss(p, KEY, batch)[0])(tree)
        found = products(program.jaxpr)
        assert found
        assert all(dtypes == {dtype} for dtypes in found), found
        assert program.out_avals[0].dtype == jnp.float32


@pytest.mark.parametrize(
    "name", ["mlp", pytest.param("transformer", marks=pytest.mark.slow)]
)
def test_mixed_precision_has_nearly_the_same_gradient_in_float32(name):
    task, params, batch = prepared(name)
    noise = jax.random.split(KEY, len(jax.tree.leaves(params)))
    noise = jax.tree.unflatten(jax.tree.structure(params), list(noise))
    params = jax.tree.map(
        lambda x, key: x + 0.05 * jax.random.normal(key, x.shape), params, noise
    )
    step = jax.jit(
        lambda p, cast: jax.value_and_grad(
            lambda p: task.loss(low(p) if cast else p, KEY, batch)[0]
        )(p),
        static_argnums=1,
    )
    (exact, grads), (mixed, mixed_grads) = step(params, False), step(params, True)
    assert exact.dtype == mixed.dtype == jnp.float32
    assert abs(float(exact) - float(mixed)) < 0.02 * float(exact)
    assert float(exact) != float(mixed)
    left, right = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)])
        for g in (grads, mixed_grads)
    )
    assert right.dtype == np.float32
    cosine = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
    assert cosine > 0.99
