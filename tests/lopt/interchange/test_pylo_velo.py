"""VeLO's two folders of PyLO, against its networks written out in NumPy."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lopt import Artifact, SmallFC
from lopt.interchange import pylo, pylo_velo
from lopt.learned.velo import VeLO, mix

RULE = VeLO(lstm_hidden_size=5, param_inits=3, ff_hidden_layers=3)
SHAPES = {
    "mlp": {
        "input_weights_": (3, 4, 30),
        "input_bias_": (3, 4),
        "hidden_weights_.0": (3, 4, 4),
        "hidden_weights_.1": (3, 4, 4),
        "hidden_bias_.0": (3, 4),
        "hidden_bias_.1": (3, 4),
        "output_weights_": (3, 3, 4),
        "output_bias_": (3, 3),
        "input_weights": (4, 30),
        "input_bias": (4,),
        "hidden_weights.0": (4, 4),
        "hidden_weights.1": (4, 4),
        "hidden_bias.0": (4,),
        "hidden_bias.1": (4,),
        "output_weights": (3, 4),
        "output_bias": (3,),
    },
    "rnn": {
        **{f"{name}.weight": (5, 30) for name in ("mix_layer1", "mix_layer2")},
        **{f"{name}.bias": (5,) for name in ("mix_layer1", "mix_layer2")},
        "final_mix_layer.weight": (5, 30),
        "final_mix_layer.bias": (5,),
        "lstm.linear.weight": (20, 10),
        "lstm.linear.bias": (20,),
        "rnn_to_controls.weight": (3, 5),
        "rnn_to_controls.bias": (3,),
        "step_size.weight": (1, 5),
        "step_size.bias": (1,),
        "lstm_init_state.0": (1, 5),
        "lstm_init_state.1": (1, 5),
    },
}
CONFIGS = {
    "mlp": {
        "hidden_layers": 2,
        "hidden_size": 4,
        "input_size": 30,
        "output_size": 3,
        "param_inits": 3,
    },
    "rnn": {
        "input_size": 30,
        "lstm_hidden_size": 5,
        "mix_layers": True,
        "param_inits": 3,
    },
}


@pytest.fixture
def folders(tmp_path):
    """Both folders with random weights, written from the shapes above."""
    rng = np.random.default_rng(0)
    for name, shapes in SHAPES.items():
        folder = tmp_path / name
        folder.mkdir()
        tensors = {k: np.float32(rng.normal(size=s)) for k, s in shapes.items()}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    return tmp_path / "mlp", tmp_path / "rnn"


def test_the_scheduler_computes_what_pylos_does(folders):
    """`VeLORNN.forward` in NumPy, for four tensors at once."""
    artifact = pylo_velo.load(*folders)
    assert artifact.optimizer == RULE
    w = load_file(folders[1] / "model.safetensors")
    x = np.float32(np.random.default_rng(1).normal(size=(4, 30)))

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    common = np.maximum(linear("mix_layer2", x), 0).max(0, keepdims=True)
    seen = linear("final_mix_layer", x) + common
    hidden, cell = (np.repeat(w[f"lstm_init_state.{i}"], 4, 0) for i in (0, 1))
    gates = linear("lstm.linear", np.concatenate([seen, hidden], -1))
    i, g, f, o = np.split(gates, 4, -1)
    cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(g)
    out = sigmoid(o) * np.tanh(cell)

    scheduler, theta = RULE.scheduler, artifact.theta["scheduler"]
    state = scheduler.initial_state(theta, 4)
    object.__setattr__(scheduler, "inputs", lambda *a: (x, state.losses))
    schedule, after = scheduler.apply(theta, state, 0.0, 0, 10, x)
    near = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(
        schedule.step_mult, linear("step_size", out)[:, 0], **near
    )
    np.testing.assert_allclose(
        schedule.controls, linear("rnn_to_controls", out), **near
    )
    np.testing.assert_allclose(after.lstm.cell, cell, **near)


def test_the_bank_mixes_to_what_pylos_does(folders):
    """`VeLOMLP.update_params` in NumPy."""
    theta = pylo_velo.load(*folders).theta
    w = load_file(folders[0] / "model.safetensors")
    control = np.float32([0.3, -1.0, 2.0])
    ours = mix(theta["bank"], control)
    names = ["input_{}_", "hidden_{}_.0", "hidden_{}_.1", "output_{}_"]
    for i, name in enumerate(names):
        mixed = [
            100.0
            * np.mean([c * part for c, part in zip(control, w[key], strict=True)], 0)
            for key in (name.format("weights"), name.format("bias"))
        ]
        layer = ours[f"layer_{i}"]
        np.testing.assert_allclose(layer["kernel"], mixed[0].T, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(layer["bias"], mixed[1], rtol=1e-5, atol=1e-4)


def test_what_is_read_is_written_again(folders, tmp_path):
    artifact = pylo_velo.load(*folders)
    artifact.save(tmp_path / "artifact")
    again = Artifact.load(tmp_path / "artifact")
    out = tmp_path / "out_mlp", tmp_path / "out_rnn"
    pylo_velo.save(again, *out)
    for name, old, new in zip(SHAPES, folders, out, strict=True):
        assert json.loads((new / "config.json").read_text()) == CONFIGS[name]
        theirs, ours = (load_file(f / "model.safetensors") for f in (old, new))
        assert {k: v.shape for k, v in ours.items()} == SHAPES[name]
        for key, value in theirs.items():
            stem = key.partition(".")[0]
            if key.startswith("mix_layer1") or (name == "mlp" and stem[-1] != "_"):
                assert not np.any(ours[key])
            else:
                np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.mark.parametrize(
    ("part", "changes", "needle"),
    [
        (0, {"param_inits": 4}, "param_inits = 3 must be 4"),
        (1, {"mix_layers": False}, "mix_layers = False must be True"),
        (1, {"lstm_hidden_size": 6}, "must be float32 of shape"),
        (0, {"hidden_layers": 1}, "holds unknown tensors"),
        (0, {"output_size": 2}, "output_size = 2 must be 3"),
        (0, {"hidden_size": "4"}, "hidden_size = '4' must be of type int"),
    ],
)
def test_what_does_not_fit_is_named(folders, part, changes, needle):
    path = folders[part] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError) as info:
        pylo_velo.load(*folders)
    assert needle in str(info.value) and "\n" not in str(info.value)
    assert any(str(folder) in str(info.value) for folder in folders)


def test_other_optimizers_have_no_such_folders(folders, random_theta, tmp_path):
    artifact = Artifact(SmallFC(hidden_size=2), random_theta(SmallFC(hidden_size=2)))
    with pytest.raises(ValueError, match="no VeLO of a SmallFC"):
        pylo_velo.save(artifact, tmp_path / "a", tmp_path / "b")
    for folder in folders:
        with pytest.raises(ValueError, match="VeLO is two folders"):
            pylo.load(folder)
