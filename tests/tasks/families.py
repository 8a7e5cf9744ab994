"""Shared checks of every family of models."""

import math

import jax
import numpy as np
import optax

from parametrization import Rules

KEY = jax.random.key(11)


def described(specs):
    """All that a spec says, by path; a depth_mult of 1 is left out."""
    rows = {}
    for path, spec in jax.tree_util.tree_leaves_with_path(specs):
        row = (str(spec.axes), spec.kind, spec.shape, spec.base_shape, spec.fan_in_mult)
        depth = () if spec.depth_mult == 1 else (spec.depth_mult,)
        rows["/".join(key.key for key in path)] = (*row, *depth)
    return rows


def randomized(model, input_shape, num_outputs, scale=0.3):
    """Parameters away from the start, where readout and biases are zero."""
    init = jax.eval_shape(lambda key: model.init(key, input_shape, num_outputs), KEY)
    leaves, structure = jax.tree.flatten(init)
    rng = np.random.default_rng(2)
    values = [scale * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return structure.unflatten(values)


def losses(model, params, x, labels, num_outputs):
    """Cross-entropy of each of the labels `[B, ...]`, in nats."""
    logits = model.apply(params, x, num_outputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def start(model, x, labels, num_outputs):
    """Initial parameters, after a check of where they start.

    Logits must be 0, and every loss ln C to one unit in the last place, which is what
    a float32 logarithm may be off.
    """

    def compute(key):
        params = model.init(key, x.shape[1:], num_outputs)
        logits = model.apply(params, x, num_outputs)
        return params, logits, losses(model, params, x, labels, num_outputs)

    run = jax.jit(compute)
    params, logits, values = run(KEY)
    assert logits.shape == (*labels.shape, num_outputs)
    assert not np.asarray(logits).any() and values.dtype == np.float32
    error = np.abs(np.asarray(values, np.float64) - math.log(num_outputs)).max()
    assert error <= np.spacing(np.float32(math.log(num_outputs)))
    return params


def by_rules(model, x, labels, num_outputs):
    """For each parametrization: a start, loss and gradients there and elsewhere.

    A program has the same bits every time, so that each is compiled only once.
    """
    compiled, results = {}, {}

    def run(function, *args):
        lowered = jax.jit(function).lower(*args)
        program = lowered.as_text()
        if program not in compiled:
            compiled[program] = lowered.compile()
        return compiled[program](*args)

    away = randomized(model, x.shape[1:], num_outputs)
    for rules in Rules:
        other = model.with_rules(rules)
        params = run(lambda key, m=other: m.init(key, x.shape[1:], num_outputs), KEY)
        grad = jax.value_and_grad(
            lambda p, m=other: losses(m, p, x, labels, num_outputs).mean()
        )
        results[rules] = params, run(grad, params), run(grad, away)
    return results


def assert_equal_bits(results):
    """All parametrizations did the same, and it was not nothing."""
    first, *others = results.values()
    for other in others:
        same = jax.tree.map(np.array_equal, first, other)
        assert all(jax.tree.leaves(same)), same
    (_, (at_start, _), (value, grads)) = first
    assert np.isfinite(float(value)) and float(value) != float(at_start)
    assert all(np.asarray(x).any() for x in jax.tree.leaves(grads))
