"""Folders of PyLO: what is read steps as PyLO does, and is written as it was."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lopt import Artifact, SmallFC
from lopt.interchange import celo, pylo
from lopt.learned.celo2 import Celo2
from lopt.learned.elo import ELO
from lopt.learned.mlp_lopt import MLPLOpt
from parametrization import ADAM_LIKE, STANDARD, infer_specs

FILES = ("config.json", "model.safetensors")


@pytest.fixture
def meta_mlp(golden, tmp_path):
    """A copy of a MetaMLP's folder, to be damaged."""
    return shutil.copytree(golden("pylo_metamlp"), tmp_path / "mulo")


def test_a_meta_mlp_is_small_fc_with_the_offsets_of_the_constructor(meta_mlp):
    artifact = pylo.load(meta_mlp)
    expected = SmallFC(hidden_size=32, step_mult=0.01, rules=ADAM_LIKE)
    assert artifact.optimizer == expected
    tensors = load_file(meta_mlp / "model.safetensors")
    for layer, name in (("0", "input"), ("1", "linear_0"), ("2", "output")):
        ours = artifact.theta[f"layer_{layer}"]
        np.testing.assert_array_equal(
            ours["kernel"], tensors[f"network.{name}.weight"].T
        )
        np.testing.assert_array_equal(ours["bias"], tensors[f"network.{name}.bias"])
    for name, values in {
        "momentum": [0.15216392, 0.14245212, 0.06812963],
        "second_moment": [0.01079706],
        "factored": [0.18621896, -0.10864615, -0.06185547],
    }.items():
        np.testing.assert_array_equal(
            artifact.theta[f"{name}_offsets"], np.float32(values)
        )
    # The decays themselves, as computed by hand from PyLO's defaults.
    decays = artifact.optimizer.learned_decays(artifact.theta)
    np.testing.assert_allclose(decays["momentum"], [0.5420, 0.9584, 0.99802], atol=5e-5)
    np.testing.assert_allclose(decays["second_moment"], [0.998886], atol=1e-6)
    np.testing.assert_allclose(
        decays["factored"], [0.3562, 0.99663, 0.999461], atol=5e-5
    )
    assert artifact.provenance["imported"]["class"] == "MetaMLP"


def test_what_the_folder_does_not_say_is_an_argument(meta_mlp):
    artifact = pylo.load_meta_mlp(
        meta_mlp, offsets=pylo.NO_OFFSETS, step_mult=1e-3, rules=STANDARD
    )
    assert artifact.optimizer == SmallFC(hidden_size=32)
    assert not np.any(artifact.theta["momentum_offsets"])
    with pytest.raises(
        ValueError, match=r"offsets.* is float32\[1\] and must be float32\[3\]"
    ):
        pylo.load_meta_mlp(meta_mlp, offsets=pylo.Offsets(momentum=(0.1,)))
    with pytest.raises(ValueError, match=r"factored\[2\] = nan must be a number"):
        pylo.Offsets(factored=(0.1, 0.1, np.nan))


def test_it_steps_as_pylo_does(golden, meta_mlp, run):
    """On the gradients of `AdafacLO_naive`, of a matrix that is not square."""
    with np.load(golden("pylo_adafaclo_wd0.npz"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    arguments = json.loads(str(arrays["config"]))["constructor_args"]
    artifact = pylo.load_meta_mlp(
        meta_mlp,
        offsets=pylo.Offsets(
            *(
                tuple(arguments[f"{name}_decays"])
                for name in ("momentum", "rms", "adafactor")
            )
        ),
        step_mult=arguments["step_mult"],
        rules=STANDARD,
    )
    # torch keeps [out, in]: transposed, the smaller axis is the fan-in in both.
    params = {"w": jnp.asarray(arrays["params/lin1.weight"][0].T)}
    grads = {"w": jnp.asarray(arrays["grads/lin1.weight"].swapaxes(1, 2))}
    path, _ = run(
        lambda: artifact.as_optax(infer_specs(params, params), 100), params, grads
    )
    wanted = arrays["params/lin1.weight"][1:].swapaxes(1, 2)
    np.testing.assert_allclose(path["w"], wanted, rtol=1e-5, atol=3e-6)
    assert np.abs(wanted[-1] - np.asarray(params["w"])).max() > 0.05


def test_a_small_fc_is_written_so_that_pylo_and_we_read_it(meta_mlp, tmp_path):
    artifact = pylo.load(meta_mlp)
    pylo.save(artifact, tmp_path / "out")
    again = Artifact.load(tmp_path / "out")
    assert again.optimizer == artifact.optimizer
    left, right = (load_file(f / FILES[1]) for f in (meta_mlp, tmp_path / "out"))
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name])
    theirs = json.loads((meta_mlp / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: ours[key] for key in theirs} == theirs
    # What its constructor must be told stands there as well.
    decays = ours["pylo"]["momentum_decays"]
    np.testing.assert_allclose(decays, pylo.Offsets().momentum, rtol=1e-6)


def test_a_meta_mlp_is_elo_too_and_is_written_as_it_was(golden, tmp_path):
    folder = golden("pylo_metamlp")
    artifact = pylo.load_elo(folder, learning_rate=3e-4, weight_decay=0.1)
    assert artifact.optimizer == ELO(learning_rate=3e-4, weight_decay=0.1)
    assert artifact.theta.keys() == {"layer_0", "layer_1", "layer_2"}
    pylo.save(artifact, tmp_path / "out")
    left, right = (load_file(f / FILES[1]) for f in (folder, tmp_path / "out"))
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name])
    configs = [
        json.loads((f / FILES[0]).read_text()) for f in (folder, tmp_path / "out")
    ]
    assert configs[0] == configs[1]


def test_celo2_is_written_byte_for_byte_as_it_was_read(golden, tmp_path):
    folder = golden("pylo_celo2mlp")
    artifact = pylo.load(folder)
    assert artifact.optimizer == Celo2(adam_mult=1.0, bias_corrected=True)
    pylo.save(artifact, tmp_path / "out")
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    artifact.save(tmp_path / "artifact")
    again = Artifact.load(tmp_path / "artifact")
    assert again.optimizer == artifact.optimizer
    pylo.save(again, tmp_path / "out", replace=True)
    assert (tmp_path / "out" / FILES[1]).read_bytes() == (
        folder / FILES[1]
    ).read_bytes()


def test_celo2_of_pylo_and_of_celo_are_the_same_numbers(golden, foreign, write):
    theirs = pylo.load_celo2(golden("pylo_celo2mlp"), learning_rate=3e-4)
    assert theirs.optimizer.learning_rate == 3e-4
    path = write(foreign("celo2_theta", ""))
    original = celo.load(path)
    assert original.optimizer == Celo2()
    for i in range(3):
        for name in ("kernel", "bias"):
            np.testing.assert_array_equal(
                theirs.theta[f"layer_{i}"][name], original.theta[f"layer_{i}"][name]
            )


@pytest.fixture
def celo2_folder(random_theta, tmp_path):
    """A folder of random weights, to be damaged."""
    optimizer = Celo2(hidden_size=4, hidden_layers=1)
    pylo.save(Artifact(optimizer, random_theta(optimizer)), tmp_path / "celo2")
    return tmp_path / "celo2"


def test_other_sizes_are_read_from_the_file(celo2_folder):
    artifact = pylo.load(celo2_folder, bias_corrected=False, adam_mult=20.0)
    assert artifact.optimizer == Celo2(hidden_size=4, hidden_layers=1)
    assert artifact.theta["layer_0"]["kernel"].shape == (30, 4)
    config = json.loads((celo2_folder / "config.json").read_text())
    assert config["feature_dims"] == [1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3]


def configured(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        config |= {k: v for k, v in changes.items() if v is not ...}
        for key in [k for k, v in changes.items() if v is ...]:
            config.pop(key, None)
        (folder / "config.json").write_text(json.dumps(config))

    return change


def weighted(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


BOTH = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
    "no json": (lambda f: (f / "config.json").write_text("{"), "read as JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "read as safetensors"),
    "a pickle": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04K\x01."),
        "read as safetensors",
    ),
    "no size": (configured(hidden_size=...), "hidden_size is missing"),
    "a text": (configured(hidden_size="8"), "hidden_size = '8' must be of type int"),
    "a truth": (configured(hidden_layers=True), "hidden_layers = True must be"),
    "zero": (configured(hidden_size=0), "hidden_size = 0"),
    "another size": (configured(hidden_size=9), "must be float32 of shape"),
    "deeper": (configured(hidden_layers=7), "lacks the tensor"),
    "unknown": (configured(input_size=..., feature_dims=...), "no class that is known"),
    "more": (weighted(lambda t: t.update(x=np.zeros(1, np.float32))), "unknown tens"),
}
META_MLP = {
    "inputs": (configured(input_size=38), "input_size = 38 must be 39"),
    "half": (
        weighted(lambda t: t.update({"network.input.bias": np.zeros(32, np.float16)})),
        "network.input.bias is float16",
    ),
    "nan": (
        weighted(lambda t: t["network.output.bias"].__setitem__(0, np.nan)),
        "network.output.bias holds values that are not finite",
    ),
}
CELO2 = {
    "other features": (configured(feature_dims=[30]), r"feature_dims = [30] must be"),
    "activation": (configured(activation="tanh"), "activation = 'tanh' must be 'relu'"),
    "output": (configured(output_size=2), "output_size = 2 must be 3"),
    "missing": (weighted(lambda t: t.pop("w0.13")), "lacks the tensor w0.13"),
    "swapped": (
        weighted(lambda t: t.update({"w0.3": t["w0.2"], "w0.2": t["w0.3"]})),
        "w0.2 is float32 of shape (3, 4)",
    ),
}


def assert_refused(folder, damage, needle):
    damage(folder)
    with pytest.raises(ValueError) as info:
        pylo.load(folder)
    message = str(info.value)
    assert str(folder) in message and needle in message, message
    assert "\n" not in message


@pytest.mark.parametrize("case", BOTH | META_MLP)
def test_a_meta_mlp_that_is_not_understood_is_refused(meta_mlp, case):
    assert_refused(meta_mlp, *(BOTH | META_MLP)[case])


@pytest.mark.parametrize("case", BOTH | CELO2)
def test_a_celo2_that_is_not_understood_is_refused(celo2_folder, case):
    assert_refused(celo2_folder, *(BOTH | CELO2)[case])


def test_what_pylo_has_no_class_for_is_not_written(random_theta, tmp_path):
    optimizer = MLPLOpt(hidden_size=2)
    with pytest.raises(ValueError, match="no folder for a MLPLOpt"):
        pylo.save(Artifact(optimizer, random_theta(optimizer)), tmp_path / "out")
    wrong = Artifact(Celo2(), random_theta(Celo2(hidden_size=4)))
    with pytest.raises(ValueError, match="does not belong"):
        pylo.save(wrong, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_bounded_rule_is_refused(tmp_path):
    rule = SmallFC(largest_step=3.0)
    artifact = Artifact(rule, rule.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"runs no SmallFC with largest_step = 3\.0"):
        pylo.save(artifact, tmp_path / "out")
    assert not (tmp_path / "out").exists()
