"""The abc symmetry: what is multiplied, how it starts, and the step belong together.

A parameter that is θ times smaller behind a multiplier θ, with a step θ times smaller
(θ² for gradient descent) and an epsilon θ times larger, trains the same function. So
there are two ways to write every rule, and both must give the same training.

Reference: Yang et al., Tensor Programs V, arXiv:2203.03466, Lemma J.1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt import SGD, Adam
from parametrization import ADAM_LIKE, SGD_LIKE
from tasks import MLP, ImageClassification, LanguageModelling, Transformer
from tasks.base import sample

STEPS = 5
WIDTH, BASE = 48, 16
N = WIDTH / BASE
TASKS = {
    "mlp": ImageClassification(MLP((WIDTH, WIDTH), base_width=BASE), batch_size=16),
    "transformer": LanguageModelling(
        Transformer(WIDTH, depth=1, base_width=BASE, scan=True), length=6, batch_size=4
    ),
}


def randomized(task):
    """Parameters away from the start, so that every gradient counts at once."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(task.init, jax.random.key(0)))
    rng = np.random.default_rng(3)
    return structure.unflatten([0.2 * rng.normal(size=x.shape) for x in leaves])


@functools.cache
def material(name):
    task = TASKS[name]
    return task, sample(task, task.load_data(), jax.random.key(4)), randomized(task)


def train(name, loss, optimizer, params):
    """Parameters after a few steps, and how far they have gone; in float64."""
    _, batch, _ = material(name)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.float64, params)
        exact = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, batch
        )

        @jax.jit
        def run(params):
            def step(carry, _):
                params, state = carry
                grads = jax.grad(lambda p: loss(p, jax.random.key(0), exact)[0])(params)
                updates, state = optimizer.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[0]

        return jax.tree.map(np.asarray, run(params)[0])


def assert_same_training(one, other, start):
    for a, b, x in zip(*map(jax.tree.leaves, (one, other, start)), strict=True):
        moved = np.abs(a - x).max()
        assert moved > 1e-7
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * moved)


NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name == "transformer" else [])
    for name in TASKS
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_multiplier_on_everything(name, optimizer):
    task, _, params = material(name)
    theta, rate, eps = 7.0, 3e-3, 1e-5
    one = train(name, task.loss, make(task, optimizer, rate, eps), params)

    def multiplied(small, key, batch):
        return task.loss(jax.tree.map(lambda p: theta * p, small), key, batch)

    smaller = rate / theta if optimizer == "adam" else rate / theta**2
    other = train(
        name,
        multiplied,
        make(task, optimizer, smaller, eps * theta),
        jax.tree.map(lambda p: p / theta, params),
    )
    assert_same_training(one, jax.tree.map(lambda p: theta * p, other), params)


def make(task, optimizer, rate, eps):
    kinds = {"adam": Adam(eps=eps, rules=ADAM_LIKE), "sgd": SGD(rules=SGD_LIKE)}
    return kinds[optimizer].as_optax({"learning_rate": rate}, task.specs(), STEPS)


# Step of each kind and what its gradient is divided by, with the readout in the form
# without multiplier: Tables 3 and 8 of Tensor Programs V, written out.
WITHOUT_MULTIPLIER = {
    "adam": {
        "hidden": (1 / N, 1 / N),
        "output": (1 / N, 1.0),
        "input": (1.0, 1 / N),
        "vector": (1.0, 1 / N),
    },
    "sgd": {
        "hidden": (1.0, 1.0),
        "output": (1 / N, 1.0),
        "input": (N, 1.0),
        "vector": (N, 1.0),
    },
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_readout_without_its_multiplier(name, optimizer):
    task, _, params = material(name)
    rate, eps = 3e-3, 1e-5
    one = train(name, task.loss, make(task, optimizer, rate, eps), params)
    specs = task.specs()
    sizes = jax.tree.map(lambda s: 1 / N if s.kind == "output" else 1.0, specs)

    def without(params, key, batch):
        multiplied = jax.tree.map(lambda p, size: p / size, params, sizes)
        return task.loss(multiplied, key, batch)

    def column(i):
        def value(spec):
            at_base = spec.kind == "vector" and spec.shape == spec.base_shape
            scales = WITHOUT_MULTIPLIER[optimizer][spec.kind]
            return 1.0 if at_base else scales[i]

        factors = jax.tree.map(value, specs)
        power = (1.0, -1.0)[i]
        return optax.stateless(
            lambda u, _: jax.tree.map(lambda x, f: x * f**power, u, factors)
        )

    rule = optax.scale_by_adam(eps=eps) if optimizer == "adam" else optax.identity()
    chain = optax.chain(column(1), rule, column(0), optax.scale(-rate))
    start = jax.tree.map(lambda p, size: p * size, params, sizes)
    other = train(name, without, chain, start)
    other = jax.tree.map(lambda p, size: p / size, other, sizes)
    assert_same_training(one, other, params)
