"""small_fc against trajectories of the original implementation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt import SmallFC
from parametrization import Axes, ParamSpec

# Names of the reference's accumulators in ours.
ACCUMULATORS = {
    "mom_rolling/m": "momentum",
    "rms_rolling/rms": "second_moment",
    "fac_rolling_features/v_row": "row",
    "fac_rolling_features/v_col": "column",
    "fac_rolling_features/v_diag": "row",
}
OFFSETS = {
    "momentum_decays": "momentum_offsets",
    "rms_decays": "second_moment_offsets",
    "adafactor_decays": "factored_offsets",
}
NAMES = SmallFC().feature_names


class Golden:
    """One reference file, and our run on its inputs in float32 and float64."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        config = json.loads(str(self.arrays["config"]))
        self.arguments = config["constructor_args"]
        self.feature_step = config["feature_step_zero_based"]
        self.names = config["leaf_order"]
        self.optimizer = SmallFC(**self.arguments)
        self.f32 = self._run(np.float32)
        with jax.enable_x64(True):
            self.f64 = self._run(np.float64)

    def group(self, prefix):
        return {name: self.arrays[f"{prefix}/{name}"] for name in self.names}

    def theta(self):
        theta = {
            ours: self.arrays[f"theta/{theirs}"] for theirs, ours in OFFSETS.items()
        }
        for i in range(3):
            kernel, bias = (self.arrays[f"theta/nn/~/{kind}{i}"] for kind in "wb")
            theta[f"layer_{i}"] = {"kernel": kernel, "bias": bias}
        return theta

    def _run(self, dtype):
        def whole(theta, params, grads):
            lopt = self.optimizer.as_optax(theta, specs, 100)

            def step(carry, grad):
                params, state = carry
                features = self.optimizer.features(theta, state, grad, params)
                updates, state = lopt.update(grad, state, params)
                params = optax.apply_updates(params, updates)
                return (params, state), (params, features)

            start = (params, lopt.init(params))
            (_, state), (path, features) = jax.lax.scan(step, start, grads)
            at = jax.tree.map(lambda x: x[self.feature_step], features)
            return path, state, at

        params = {name: value[0] for name, value in self.group("params").items()}
        specs = {
            name: ParamSpec(Axes((), ("fixed",) * p.ndim), p.shape, p.shape)
            for name, p in params.items()
        }
        inputs = jax.tree.map(dtype, (self.theta(), params, self.group("grads")))
        compiled = jax.jit(whole)
        return jax.tree.map(np.asarray, compiled(*inputs))


@pytest.fixture(scope="module", params=["small_fc_step0.001", "small_fc_step0.01"])
def reference(request, golden):
    return Golden(golden(f"{request.param}.npz"))


LEAVES = ["bias_7", "conv_3x3x4x6", "mat_12x7", "scalar", "sq_8x8", "vec_1x9"]
FACTORED = ("conv_3x3x4x6", "mat_12x7", "sq_8x8", "vec_1x9")


def test_the_file_is_what_the_tests_take_it_for(reference):
    assert sorted(reference.names) == LEAVES
    assert reference.arguments["hidden_layers"] == 2
    assert len(json.loads(str(reference.arrays["features_names"]))) == len(NAMES) == 39
    assert all(np.abs(reference.arrays[f"theta/{name}"]).min() > 0 for name in OFFSETS)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_step_in_float32(reference, leaf):
    got, want = reference.f32[0][leaf], reference.arrays[f"params/{leaf}"][1:]
    assert got.dtype == np.float32 and len(got) == 12
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_step_in_float64(reference, leaf):
    got, want = reference.f64[0][leaf], reference.arrays[f"params_f64/{leaf}"][1:]
    assert got.dtype == np.float64 and len(got) == 12
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", range(39), ids=NAMES)
def test_each_feature(reference, index):
    for leaf in LEAVES:
        got = reference.f32[2][leaf][..., index]
        want = reference.arrays[f"features/{leaf}"][..., index]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=leaf)


# The reference's words for our features, in its order.
STEMS = {
    "gradient": "g",
    "parameter": "p",
    "momentum": "m{}",
    "second_moment": "rms",
    "normalized_momentum": "m{}*rsqrt(rms+1e-6)",
    "reciprocal_root": "rsqrt(rms+1e-6)",
    "factored_gradient": "fac_g{}",
    "row": "row{}",
    "column": "col{}",
    "reciprocal_root_row": "rsqrt(row{}+1e-8)",
    "reciprocal_root_column": "rsqrt(col{}+1e-8)",
    "factored_momentum": "m{0}*rowfactor{0}*colfactor{0}",
    "time": "tanh(t/{}-1)",
}


def test_features_stand_in_the_reference_s_order(reference):
    translated = []
    for name in NAMES:
        stem, _, number = name.rpartition("_")
        translated.append(STEMS[stem or name].format(number))
    assert translated == json.loads(str(reference.arrays["features_names"]))


@pytest.mark.parametrize("theirs", ACCUMULATORS)
def test_final_accumulators(reference, theirs):
    prefix = f"final/{theirs}/"
    wants = {
        key.removeprefix(prefix): value
        for key, value in reference.arrays.items()
        if key.startswith(prefix)
    }
    ranks = {"v_row": FACTORED, "v_col": FACTORED, "v_diag": ("bias_7", "scalar")}
    assert sorted(wants) == sorted(ranks.get(theirs.rpartition("/")[2], LEAVES))
    for leaf, want in wants.items():
        tensor = reference.f32[1].tensors[leaf]
        got = np.moveaxis(getattr(tensor, ACCUMULATORS[theirs]), 0, -1)
        want = want.reshape(got.shape) if leaf == "scalar" else want
        atol = 1e-7 * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=atol, err_msg=leaf)


def test_updates_are_counted(reference):
    assert reference.f32[1].step == reference.arrays["final/iteration"] == 12
    assert reference.f32[1].step.dtype == jnp.int32
