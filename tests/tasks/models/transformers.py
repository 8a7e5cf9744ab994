"""Shared by tests of transformers: cheap compilation, inputs, parameters, loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tasks.models.transformer import Transformer


def shapes(model):
    """Shape of one input, and the number of outputs."""
    return ((8,), 7) if isinstance(model, Transformer) else ((4, 6, 3), 10)


def examples(model, num=2):
    """Tokens, or images whose pixels have different scales; and labels."""
    shape, outputs = shapes(model)
    rng = np.random.default_rng(7)
    if isinstance(model, Transformer):
        x = rng.integers(0, outputs, (num, *shape)).astype(np.int32)
        return x, rng.integers(0, outputs, (num, *shape))
    scales = np.exp(rng.normal(size=(1, *shape)))
    x = (scales * rng.normal(size=(num, *shape))).astype(np.float32)
    return x, rng.integers(0, outputs, num)


def randomized(model, shape=None, outputs=None, scale=0.5):
    """Parameters away from the start, where readout and biases are zero."""
    shape, outputs = shape or shapes(model)[0], outputs or shapes(model)[1]
    init = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, outputs))
    leaves, structure = jax.tree.flatten(init)
    rng = np.random.default_rng(2)
    values = [scale * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return structure.unflatten(values)


def loss_of(model):
    """The mean cross-entropy as a function of parameters, inputs and labels."""

    def loss(params, x, labels):
        logits = model.apply(params, x, shapes(model)[1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    return loss
