"""CELO2 with its trained weights against trajectories of both implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt import SmallFC
from lopt.learned.celo2 import Celo2

LEAVES = {
    "conv/w": "kernel kernel channels -> channels",
    "gain/b": "->",
    "mat/b": "-> width",
    "mat/w": "width -> width",
    "row/w": "pixels -> width",
    "sq/w": "width -> width",
}
MATRICES = ("conv/w", "mat/w", "row/w", "sq/w")
PYLO = {"bias_corrected": True}
CASES = {  # file -> (its optimizer, tolerance of its README)
    "celo2_jax": (Celo2(), 2e-6),
    "celo2_jax_wd": (Celo2(weight_decay=0.1), 3e-6),
    "celo2_jax_base": (Celo2(orthogonalize=False), 2e-6),
    "celo2_pylo": (Celo2(**PYLO), 2e-6),
    "celo2_pylo_wd": (Celo2(weight_decay=0.1, **PYLO), 5e-6),
    "celo2_pylo_base": (Celo2(orthogonalize=False, **PYLO), 2e-6),
    "celo2_pylo_default": (Celo2(adam_mult=1.0, **PYLO), 2e-6),
}
IN_FLOAT64 = ("celo2_jax", "celo2_jax_wd", "celo2_jax_base")


def theta_from(arrays):
    """Our θ from the original's names: its first layer is split by feature."""
    stack = {key.rpartition("/")[2]: value for key, value in arrays.items()}
    kernels = [stack[f"w0__{i}"] for i in range(14)]
    return {
        "layer_0": {"kernel": np.concatenate(kernels), "bias": stack["b0"]},
        "layer_1": {"kernel": stack["w1"], "bias": stack["b1"]},
        "layer_2": {"kernel": stack["w2"], "bias": stack["b2"]},
    }


@pytest.fixture(scope="module")
def theta(golden):
    with np.load(golden("celo2_theta.npz"), allow_pickle=False) as file:
        return theta_from({key: file[key] for key in file.files})


@pytest.fixture(scope="module")
def specs(spec_of, trajectory):
    params = trajectory("celo2_jax").group("params")
    return {n: spec_of(axes, params[n].shape[1:]) for n, axes in LEAVES.items()}


def test_the_weights_are_of_this_optimizer(theta):
    shapes = jax.eval_shape(Celo2().init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, theta) == jax.tree.map(jnp.shape, shapes)
    assert sum(x.size for x in jax.tree.leaves(theta)) == 347


@pytest.mark.parametrize("name", CASES)
def test_every_step_in_float32(name, theta, specs, trajectory):
    optimizer, atol = CASES[name]
    reference = trajectory(name)
    path, _ = reference.run(optimizer, theta, np.float32, specs=specs, num_steps=100)
    reference.check(path, np.float32, atol)


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_every_step_in_float64(name, theta, specs, trajectory):
    reference = trajectory(name)
    optimizer, _ = CASES[name]
    path, _ = reference.run(optimizer, theta, np.float64, specs=specs, num_steps=100)
    reference.check(path, np.float64, None)


@pytest.mark.slow
def test_one_bad_gradient_under_a_clipped_norm_is_no_gradient(theta, specs):
    """The norm is shared, so without care all tensors would be NaN."""
    rule = Celo2(clip_norm=1.0, weight_decay=0.0)
    params = {n: jnp.ones(s.shape) for n, s in specs.items()}
    grads = dict(params, **{"mat/b": jnp.full(specs["mat/b"].shape, jnp.nan)})
    transformation = rule.as_optax(theta, specs, 10)
    with jax.disable_jit():
        steps, _ = transformation.update(grads, transformation.init(params), params)
    assert all(bool(jnp.isfinite(x).all()) for x in steps.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "linear"}, "schedule = 'linear' must be one of"),
        ({"orthogonalize": 1}, "orthogonalize = 1 must be True or False"),
        ({"learning_rate": 1e300}, "learning_rate = 1e\\+300 must be positive, at"),
        ({"weight_decay": "a"}, "weight_decay = 'a' must be a number"),
        ({"weight_decay": True}, "weight_decay = True must be a number"),
        ({"rules": None}, "rules = None must be one of STANDARD, ADAM_LIKE"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Celo2(**fields)


def test_gradients_and_specs_of_other_shapes_are_refused(theta, specs):
    rule = Celo2().as_optax(theta, specs, 10)
    params = {n: jnp.ones(s.shape) for n, s in specs.items()}
    turned = dict(params, **{"mat/w": params["mat/w"].T})
    with pytest.raises(ValueError, match=r"shape \(7, 12\), but the spec"):
        rule.update(turned, rule.init(params), params)
    with pytest.raises(ValueError, match=r"specs are None: they must be a tree"):
        SmallFC().as_optax(SmallFC().init(jax.random.key(0)), None, 1).init(params)
    small = SmallFC(hidden_size=2).as_optax(
        SmallFC(hidden_size=2).init(jax.random.key(0)), specs, 1
    )
    with pytest.raises(ValueError, match=r"shape \(7, 12\), but the spec"):
        small.update(turned, small.init(params), params)
