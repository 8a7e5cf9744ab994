"""A golden file, and an optimizer's run on its gradients and losses."""

import json

import jax
import numpy as np
import optax

from parametrization import Axes, ParamSpec

LEAVES = ["bias_7", "conv_3x3x4x6", "mat_12x7", "scalar", "sq_8x8", "vec_1x9"]


def fixed_specs(params):
    """Specs under which nothing scales and nothing is stacked."""
    return jax.tree.map(
        lambda p: ParamSpec(Axes((), ("fixed",) * p.ndim), p.shape, p.shape), params
    )


class Trajectory:
    """The arrays of one file; `run` feeds its gradients and losses to an optimizer."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.config = json.loads(str(self.arrays["config"]))
        self.arguments = self.config["constructor_args"]
        self.num_steps = self.config.get("num_steps")

    def group(self, prefix):
        """Arrays under a prefix by the rest of their path."""
        found = {
            key.removeprefix(prefix + "/"): value
            for key, value in self.arrays.items()
            if key.startswith(prefix + "/")
        }
        assert found, prefix
        return found

    def run(
        self,
        optimizer,
        theta,
        dtype,
        inputs=None,
        specs=None,
        num_steps=None,
        watch=None,
    ):
        """Parameters and states after each update, as numpy; and what was watched.

        `inputs`: `{"grads": ..., keyword: [T]}` instead of the file's own.
        `specs`: instead of those under which nothing scales.
        `watch(theta, state, grads, params)`: called before each update.
        """
        params = {name: value[0] for name, value in self.group("params").items()}
        if specs is None:
            assert self.config["leaf_order"] == LEAVES
            specs = fixed_specs(params)
        if inputs is None:
            inputs = {"grads": self.group("grads")}
            inputs |= {k: self.arrays[k] for k in ("loss",) if k in self.arrays}

        @jax.jit
        def whole(theta, params, inputs, num_steps):
            lopt = optimizer.as_optax(theta, specs, num_steps)

            def step(carry, given):
                params, state = carry
                keywords = {k: v for k, v in given.items() if k != "grads"}
                grads = given["grads"]
                seen = () if watch is None else (watch(theta, state, grads, params),)
                updates, state = lopt.update(grads, state, params, **keywords)
                params = optax.apply_updates(params, updates)
                return (params, state), (params, state, *seen)

            return jax.lax.scan(step, (params, lopt.init(params)), inputs)[1]

        with jax.enable_x64(dtype == np.float64):
            given = jax.tree.map(dtype, (theta, params, inputs))
            given = (*given, num_steps or self.num_steps)
            return jax.tree.map(np.asarray, whole(*given))

    def check(self, path, dtype, atol):
        """Every parameter after every update; `atol` is that of float32."""
        exact = dtype == np.float64
        wants = self.group("params_f64" if exact else "params")
        assert sorted(path) == sorted(wants)
        for name, want in wants.items():
            assert path[name].dtype == dtype
            np.testing.assert_allclose(
                path[name],
                want[1:],
                rtol=0 if exact else 1e-5,
                atol=1e-6 if exact else atol,
                err_msg=name,
            )


def dense(arrays, path):
    """A haiku linear layer in our names."""
    return {"kernel": arrays[f"{path}/w"], "bias": arrays[f"{path}/b"]}


def lstm(arrays, path="rnn_params/rnn/linear"):
    """A haiku LSTM and its first state in our names."""
    state = {name: arrays[f"lstm_init_state/{name}"][0] for name in ("hidden", "cell")}
    return {**dense(arrays, path), **state}


def assert_close(got, want, rtol, atol):
    assert got.shape == want.shape, (got.shape, want.shape)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
