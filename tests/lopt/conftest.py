"""Fixtures of the optimizers' tests: random θ, uneven gradients, one runner."""

import functools

import jax
import numpy as np
import optax
import pytest

from parametrization import Axes, ParamSpec
from tests.lopt.trajectories import Trajectory

AXES = {
    "scalar": "->",
    "vector": "-> width",
    "one_row": "pixels -> width",
    "embedding": "vocab -> width",
    "square": "width -> width",
    "tall": "width -> mlp",
    "three": "[layers] width -> width",
    "conv": "kernel kernel channels -> channels",
    "conv_tied": "kernel kernel channels -> channels",
}
SHAPES = {
    "scalar": (),
    "vector": (8,),
    "one_row": (1, 12),
    "embedding": (11, 4),
    "square": (8, 8),
    "tall": (8, 4),
    "three": (16, 4, 8),
    "conv": (3, 3, 4, 8),
    "conv_tied": (4, 4, 4, 8),
}


@pytest.fixture(scope="session")
def shapes():
    """Shapes of every rank, ties between axes among them."""
    return SHAPES


@pytest.fixture(scope="session")
def make_specs():
    """`name -> ParamSpec` at the base shape, or with every scaling axis `wider`."""

    def make(wider=1):
        return {name: _spec(name, wider) for name in SHAPES}

    return make


def _spec(name, wider):
    axes = Axes.parse(AXES[name])
    grows = {"width", "mlp", "channels"}
    base = tuple(
        size // wider if axis in grows else size
        for axis, size in zip(axes.names, SHAPES[name], strict=True)
    )
    return ParamSpec(axes, SHAPES[name], base)


def heteroscedastic(rng, shape):
    """Normal values with a factor exp(N(0, 1)) along every axis."""
    values = rng.normal(size=shape)
    for axis, size in enumerate(shape):
        factor = np.exp(rng.normal(size=size))
        values = values * factor.reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )
    return values


@pytest.fixture(scope="session")
def problem():
    """`(params, grads)` as float32 numpy, the gradients `[T, *S]`."""

    def make(steps, seed=0, scale=0.05):
        rng = np.random.default_rng(seed)
        params = {n: heteroscedastic(rng, s) for n, s in SHAPES.items()}
        grads = {
            n: scale * np.stack([heteroscedastic(rng, s) for _ in range(steps)])
            for n, s in SHAPES.items()
        }
        return jax.tree.map(np.float32, (params, grads))

    return make


@pytest.fixture(scope="session")
def random_theta():
    """θ away from its initial value: biases and offsets are not zero."""

    def draw(optimizer, seed=0):
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(optimizer.init, jax.random.key(0))

        def leaf(path, x):
            std = 0.1 if path[-1].key.endswith("offsets") else 1 / np.sqrt(x.shape[0])
            return jax.numpy.float32(std * rng.normal(size=x.shape))

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return draw


@pytest.fixture(scope="session")
def run():
    """Feeds given gradients: parameters after each step, and the final state."""

    def trajectory(make_transformation, params, grads, *arguments):
        @jax.jit
        def scan(params, grads, *arguments):
            transformation = make_transformation(*arguments)

            def step(carry, grad):
                params, state = carry
                updates, state = transformation.update(grad, state, params)
                params = optax.apply_updates(params, updates)
                return (params, state), params

            start = (params, transformation.init(params))
            (_, state), path = jax.lax.scan(step, start, grads)
            return path, state

        return jax.tree.map(np.asarray, scan(params, grads, *arguments))

    return trajectory


@pytest.fixture(scope="session")
def trajectory(golden):
    """`name of a reference file -> Trajectory`."""
    return functools.cache(lambda name: Trajectory(golden(f"{name}.npz")))


@pytest.fixture(scope="session")
def spec_of():
    """`("fan-in -> fan-out", shape) -> ParamSpec` at the base shape."""
    return lambda axes, shape: ParamSpec(Axes.parse(axes), shape, shape)
