"""mlp_lopt against a trajectory of the original implementation."""

import json

import jax
import numpy as np
import pytest

from lopt.learned.mlp_lopt import MLPLOpt

LEAVES = {
    "bias_7": "-> width",
    "conv_3x3x4x6": "kernel kernel channels -> channels",
    "mat_12x7": "width -> width",
    "scalar": "->",
    "sq_8x8": "width -> width",
    "vec_1x9": "pixels -> width",
}


@pytest.fixture(scope="module")
def reference(trajectory):
    return trajectory("mlp_lopt")


@pytest.fixture(scope="module", params=[np.float32, np.float64], ids=["f32", "f64"])
def results(request, reference, spec_of):
    layers = reference.group("theta/mlp/~")
    theta = {
        f"layer_{i}": {
            "kernel": layers[f"linear_{i}/w"],
            "bias": layers[f"linear_{i}/b"],
        }
        for i in range(3)
    }
    optimizer = MLPLOpt(**reference.config["constructor_args"])
    params = reference.group("params")
    specs = {n: spec_of(axes, params[n].shape[1:]) for n, axes in LEAVES.items()}
    dtype = request.param
    path, states, features = reference.run(
        optimizer, theta, dtype, specs=specs, num_steps=100, watch=optimizer.features
    )
    return dtype, path, jax.tree.map(lambda x: x[-1], states), features


def test_every_step(reference, results):
    dtype, path, _, _ = results
    reference.check(path, dtype, atol=7e-6)


def test_features_in_the_reference_s_order(reference, results):
    dtype, _, _, features = results
    names = json.loads(str(reference.arrays["features_names"]))
    assert len(names) == len(MLPLOpt().feature_names) == 19
    for leaf, want in reference.group("features").items():
        got = features[leaf][reference.config["feature_step_zero_based"]]
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=leaf)


def test_final_momenta(reference, results):
    state = results[2]
    assert state.step == 12
    # The reference rounds each decay to float32, so 1 − decay to 2⁻²⁵ / (1 − decay).
    rounding = 2.0**-25 / (1 - np.asarray(MLPLOpt().momentum_decays))
    for leaf, want in reference.group("final/rolling_features/m").items():
        got = np.moveaxis(state.tensors[leaf].momentum, 0, -1)
        want = want.reshape(got.shape)
        allowed = np.maximum(1e-4, rounding) * abs(want) + 1e-7 * abs(want).max()
        assert (abs(got - want) <= allowed).all(), leaf


def test_nothing_but_momenta_is_kept(results):
    for tensor in results[2].tensors.values():
        assert tensor.second_moment is tensor.row is tensor.column is None
