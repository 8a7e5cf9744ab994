"""Trajectories of the original implementations, reproduced."""

import numpy as np
import pytest

pytest.importorskip("torch")

import safetensors.torch
import torch

from torch_lopt import LearnedOptimizer, SmallFC

# Against the float64 run the remaining gap is the float32-rounded constants in it.
FLOAT64_ATOL = 1e-6
FLOAT32_ATOL = {
    "pylo_adafaclo_wd0": 3e-6,
    "pylo_adafaclo_wd0.1": 2e-6,
    "pylo_mulo_wd0": 2e-6,
    "pylo_mulo_wd0.1": 2e-6,
    "small_fc_step0.01": 2e-6,
    "small_fc_step0.001": 2e-6,
}


def leaves(arrays, kind):
    return {
        key.removeprefix(f"{kind}/"): value
        for key, value in arrays.items()
        if key.startswith(f"{kind}/")
    }


def largest_error(arrays, dtype, make):
    """Replays the gradients; the largest deviation over all steps and leaves."""
    want = leaves(arrays, "params_f64" if dtype == torch.float64 else "params")
    start, grads = leaves(arrays, "params"), leaves(arrays, "grads")
    params = {
        name: torch.nn.Parameter(torch.tensor(value[0], dtype=dtype))
        for name, value in start.items()
    }
    opt = make(params.items())
    worst = 0.0
    for t in range(len(next(iter(grads.values())))):
        for name, param in params.items():
            param.grad = torch.tensor(grads[name][t], dtype=dtype)
        opt.step()
        for name, param in params.items():
            got = param.detach().numpy()
            excess = np.abs(got - want[name][t + 1])
            if dtype == torch.float32:
                excess = excess - 1e-5 * np.abs(want[name][t + 1])
            worst = max(worst, excess.max())
    return worst


def pylo_rule(arguments, rules):
    return SmallFC(
        step_mult=arguments["step_mult"],
        exp_mult=arguments["exp_mult"],
        momentum_offsets=tuple(arguments["momentum_decays"]),
        rms_offsets=tuple(arguments["rms_decays"]),
        adafactor_offsets=tuple(arguments["adafactor_decays"]),
        rules=rules,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("decay", ["wd0", "wd0.1"])
@pytest.mark.parametrize("method", ["adafaclo", "mulo"])
def test_pylo_trajectory(trajectory, write_folder, method, decay, dtype):
    name = f"pylo_{method}_{decay}"
    arrays, config = trajectory(name)
    arguments = config["constructor_args"]
    # The originals break ties by an argsort of torch's shape: in the square matrix axis
    # 0 played fan-in. In conv_sq axis 1 did, as it does here: that sort was not stable.
    layouts = {"sq.weight": "canonical"}
    base, rules = None, "STANDARD"
    if method == "mulo":
        rules, layouts = "ADAM_LIKE", {"h1.weight": "canonical"}
        base = {
            key: [b or s for b, s in zip(t["base_shape"], t["shape"], strict=True)]
            for key, t in config["tensors"].items()
        }
    weights = {k: torch.tensor(v) for k, v in leaves(arrays, "network").items()}
    folder = write_folder(pylo_rule(arguments, rules), weights)

    def make(named):
        return LearnedOptimizer.from_pretrained(
            named,
            folder,
            base=base,
            layouts=layouts,
            lr=arguments["lr"],
            weight_decay=arguments["weight_decay"],
            decay="pylo",
        )

    error = largest_error(arrays, dtype, make)
    assert error < (FLOAT64_ATOL if dtype == torch.float64 else FLOAT32_ATOL[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("step_mult", ["0.01", "0.001"])
def test_small_fc_trajectory(trajectory, write_folder, step_mult, dtype):
    name = f"small_fc_step{step_mult}"
    arrays, config = trajectory(name)
    theta = leaves(arrays, "theta")
    offsets = {
        f"{kind}_offsets": tuple(theta[f"{kind}_decays"].tolist())
        for kind in ("momentum", "rms", "adafactor")
    }
    arguments = config["constructor_args"]
    rule = SmallFC(
        step_mult=arguments["step_mult"], exp_mult=arguments["exp_mult"], **offsets
    )
    weights = {}
    for i, layer in enumerate(("input", "linear_0", "output")):
        matrix = torch.tensor(theta[f"nn/~/w{i}"])
        weights[f"network.{layer}.weight"] = matrix.T.contiguous()
        weights[f"network.{layer}.bias"] = torch.tensor(theta[f"nn/~/b{i}"])
    folder = write_folder(rule, weights)
    layouts = dict.fromkeys(config["leaf_order"], "canonical")

    def make(named):
        return LearnedOptimizer.from_pretrained(named, folder, layouts=layouts)

    error = largest_error(arrays, dtype, make)
    assert error < (FLOAT64_ATOL if dtype == torch.float64 else FLOAT32_ATOL[name])


def test_golden_network_is_the_exported_one(golden, trajectory):
    """PyLO's own export reads as the tensors stored beside its trajectories."""
    exported = safetensors.torch.load_file(golden("pylo_metamlp") / "model.safetensors")
    stored = leaves(trajectory("pylo_adafaclo_wd0")[0], "network")
    assert set(exported) == set(stored) == set(SmallFC().weight_shapes)
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor.numpy(), stored[name])
