"""The fast evaluation against the definition, written out literally in float64.

The reference forms all features of every element, divides each by its root mean square
over the tensor, and runs a dense network on them; it shares nothing with `lopt`.
"""

import dataclasses

import jax
import numpy as np
import pytest

from lopt import PAPER, WIDTH_SAFE, SmallFC
from parametrization import ADAM_LIKE

STEPS = 5
SCALES = {"square": 0.25, "tall": 0.25, "three": 0.25, "conv": 0.25, "conv_tied": 0.25}
OPTIMIZERS = {
    "paper": SmallFC(step_mult=0.01, epsilons=PAPER, rules=ADAM_LIKE),
    "two decays, one layer": SmallFC(
        hidden_size=8,
        hidden_layers=1,
        exp_mult=0.1,
        momentum_decays=(0.5, 0.95),
        second_moment_decay=0.99,
        factored_decays=(0.8, 0.999),
        rules=ADAM_LIKE,
    ),
    "width_safe, three layers": SmallFC(
        hidden_size=5, hidden_layers=3, epsilons=WIDTH_SAFE, rules=ADAM_LIKE
    ),
}


def betas(initial, offsets):
    shifted = [
        1 - np.exp(10 * (np.log(1 - d) / 10 + o))
        for d, o in zip(initial, offsets, strict=True)
    ]
    return np.clip(shifted, 0.0, 1.0)


def literal(optimizer, theta, scale, param, grads):
    """Values of one tensor after each gradient, from the definition."""
    eps, k = optimizer.epsilons, len(optimizer.momentum_decays)
    beta_m = betas(optimizer.momentum_decays, theta["momentum_offsets"])
    beta_v = betas([optimizer.second_moment_decay], theta["second_moment_offsets"])[0]
    beta_f = betas(optimizer.factored_decays, theta["factored_offsets"])
    shape = param.shape
    p = param.reshape(shape or (1,))
    rank = p.ndim
    by_size = sorted(range(rank), key=lambda axis: (p.shape[axis], axis))
    m, rows, columns = ([0.0] * k for _ in range(3))
    v = 0.0
    path = []
    for t, g in enumerate(grads):
        g = g.reshape(p.shape)
        v = beta_v * v + (1 - beta_v) * g**2
        root = (v + eps.second_moment) ** -0.5
        by_factor, factored_m = [], []
        for i in range(k):
            m[i] = beta_m[i] * m[i] + (1 - beta_m[i]) * g
            square = g**2 + eps.gradient_square
            if rank == 1:
                rows[i] = columns[i] = beta_f[i] * rows[i] + (1 - beta_f[i]) * square
                by_factor.append(g / np.sqrt(rows[i] + eps.factored))
                factored_m.append(m[i] / np.sqrt(rows[i] + eps.one_dimensional))
                continue
            d1, d0 = by_size[-2:]
            over_d0 = np.mean(square, axis=d0, keepdims=True)
            over_d1 = np.mean(square, axis=d1, keepdims=True)
            rows[i] = beta_f[i] * rows[i] + (1 - beta_f[i]) * over_d0
            columns[i] = beta_f[i] * columns[i] + (1 - beta_f[i]) * over_d1
            relative = rows[i] / (
                np.mean(rows[i], axis=d1, keepdims=True) + eps.factored
            )
            factor = 1 / np.sqrt(np.maximum(relative, eps.factored))
            factor = factor / np.sqrt(np.maximum(columns[i], eps.factored))
            by_factor.append(g * factor)
            factored_m.append(m[i] * factor)
        features = [
            g,
            p,
            *m,
            v,
            *[m[i] * root for i in range(k)],
            root,
            *by_factor,
            *rows,
            *columns,
            *[1 / np.sqrt(row + eps.row_col) for row in rows],
            *[1 / np.sqrt(column + eps.row_col) for column in columns],
            *factored_m,
        ]
        features = [np.broadcast_to(x, p.shape) for x in features]
        features = [x / np.sqrt(np.mean(x**2) + eps.normalizer) for x in features]
        times = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
        features += [np.full(p.shape, np.tanh(t / scale_t - 1)) for scale_t in times]
        assert len(features) == 8 * k + 4 + 11
        x = np.stack(features, -1)
        for i in range(optimizer.hidden_layers + 1):
            layer = theta[f"layer_{i}"]
            x = (np.maximum(x, 0) if i else x) @ layer["kernel"] + layer["bias"]
        step = x[..., 0] * np.exp(optimizer.exp_mult * x[..., 1])
        p = p - optimizer.step_mult * scale * step
        path.append(p.reshape(shape))
    return np.stack(path)


@pytest.fixture(scope="module")
def trajectories(make_specs, problem, random_theta, run):
    """`name of the optimizer -> (inputs, our float64 values)`, computed once."""
    results = {}

    def trajectory(name):
        if name not in results:
            optimizer, specs = OPTIMIZERS[name], make_specs(wider=4)
            inputs = (random_theta(optimizer), *problem(STEPS))
            theta, params, grads = jax.tree.map(np.float64, inputs)
            with jax.enable_x64(True):
                path, _ = run(
                    lambda theta: optimizer.as_optax(theta, specs, 100),
                    params,
                    grads,
                    theta,
                )
            results[name] = (theta, params, grads, path)
        return results[name]

    return trajectory


TENSORS = (
    "scalar",
    "vector",
    "one_row",
    "embedding",
    "square",
    "tall",
    "three",
    "conv",
    "conv_tied",
)


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_is_the_definition_s(trajectories, name, tensor):
    theta, params, grads, path = trajectories(name)
    optimizer, scale = OPTIMIZERS[name], SCALES.get(tensor, 1.0)
    param, grad = params[tensor], grads[tensor]
    if tensor == "three":  # stacked: every layer is a tensor of its own
        layers = [
            literal(optimizer, theta, scale, param[i], grad[:, i])
            for i in range(len(param))
        ]
        want = np.stack(layers, axis=1)
    else:
        want = literal(optimizer, theta, scale, param, grad)
    got = path[tensor]
    assert got.dtype == np.float64 and got.shape == want.shape
    moved = np.abs(want - params[tensor]).max()
    assert moved > 1e-5
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * moved)


def test_the_floors_matter_at_these_gradients(trajectories):
    """Otherwise the cases above would not distinguish sets of floors."""
    theta, params, grads, path = trajectories("paper")
    safe = dataclasses.replace(OPTIMIZERS["paper"], epsilons=WIDTH_SAFE)
    other = literal(safe, theta, 0.25, params["square"], grads["square"])
    assert np.abs(path["square"] - other).max() > 1e-4
