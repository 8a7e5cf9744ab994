"""The released folder: what it holds, and that damage is refused by both libraries."""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import subprocess

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import configuration.files
import lopt.release.artifact
from lopt import PAPER, WIDTH_SAFE, Artifact, SmallFC
from lopt.release import pylo_form
from parametrization import ADAM_LIKE, STANDARD

FILES = {"config.json", "model.safetensors", "SHA256SUMS"}
RULE = SmallFC(
    hidden_size=6,
    hidden_layers=3,
    step_mult=0.03,
    exp_mult=0.002,
    momentum_decays=(0.5, 0.9),
    second_moment_decay=0.99,
    factored_decays=(0.8, 0.95),
    epsilons=WIDTH_SAFE,
    rules=ADAM_LIKE,
)


@pytest.fixture(scope="module")
def artifact(random_theta):
    provenance = {"seed": 3, "data": "digits", "nested": {"steps": [1, 2]}}
    base = {"width": 32, "depth": 2}
    return Artifact(RULE, random_theta(RULE), base, provenance)


@pytest.fixture(scope="module")
def saved(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "artifact"
    artifact.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "artifact")


def renew_sums(folder):
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(FILES - {"SHA256SUMS"})
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    renew_sums(folder)


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    renew_sums(folder)


def test_what_is_saved_reads_back_bit_for_bit(artifact, saved):
    again = Artifact.load(saved)
    assert again.optimizer == artifact.optimizer
    assert again.base == artifact.base and again.provenance == artifact.provenance
    assert jax.tree.structure(again.theta) == jax.tree.structure(artifact.theta)
    for x, y in zip(*map(jax.tree.leaves, (again.theta, artifact.theta)), strict=True):
        assert x.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    Artifact.load(saved).save(tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_the_folder_holds_three_files_with_good_sums(saved):
    assert {path.name for path in saved.iterdir()} == FILES
    lines = (saved / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == sorted(FILES - {"SHA256SUMS"})


def test_sha256sum_agrees(saved):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum (coreutils) is not installed")
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    out = subprocess.run(command, cwd=saved, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.count(": OK") == 2


def test_the_configuration_says_all_that_the_optimizer_is(artifact, saved):
    config = json.loads((saved / "config.json").read_text())
    assert set(config) == {
        "input_size",
        "hidden_size",
        "hidden_layers",
        "schema_version",
        "optimizer",
        "provenance",
        "pylo",
    }
    # PyLO counts the hidden matrices, we the hidden layers.
    sizes = (config["input_size"], config["hidden_size"], config["hidden_layers"])
    assert sizes == (8 * 2 + 4 + 11, 6, 2)
    described = config["optimizer"]
    assert described["features"] == list(RULE.feature_names)
    assert described["rules"] == "ADAM_LIKE"
    assert (config["schema_version"], described["factored_axes"]) == (3, "matrix")
    assert described["base"] == {"width": 32, "depth": 2}
    assert described["epsilons"]["normalizer"] == WIDTH_SAFE.normalizer
    words = {"momentum": "momentum", "second_moment": "rms", "factored": "adafactor"}
    for ours, word in words.items():
        offsets = np.float32(described[f"{word}_offsets"])
        np.testing.assert_array_equal(offsets, artifact.theta[f"{ours}_offsets"])
        np.testing.assert_array_equal(
            np.float32(config["pylo"][f"{word}_decays"]), offsets
        )
    pylo = config["pylo"]
    assert (pylo["step_mult"], pylo["exp_mult"], pylo["lr"]) == (0.03, 0.002, 1.0)
    assert pylo["exact"] is False and "floors" in pylo["reason"]


CHANGED = {
    "hidden_size": 5,
    "hidden_layers": 1,
    "step_mult": 0.07,
    "exp_mult": 0.009,
    "momentum_decays": (0.7, 0.97),
    "second_moment_decay": 0.97,
    "factored_decays": (0.6, 0.96),
    "epsilons": PAPER,
    "rules": STANDARD,
    "factored_axes": "tensor",
    "largest_step": 7.0,
}


def test_every_field_of_small_fc_is_stored_or_known_not_to_be(random_theta, tmp_path):
    """A field that is added must be thought of here and in `NOT_STORED`."""
    fields = {field.name for field in dataclasses.fields(SmallFC)}
    assert fields == CHANGED.keys() | set(SmallFC.NOT_STORED)
    for name, value in CHANGED.items():
        changed = dataclasses.replace(RULE, **{name: value})
        assert getattr(RULE, name) != value
        assert pylo_form.can_hold(changed) == (name != "largest_step")
        Artifact(changed, random_theta(changed)).save(tmp_path / name)
        assert Artifact.load(tmp_path / name).optimizer == changed


@pytest.mark.parametrize("num_steps", [0, -1, 1.5, True, None, "10"])
def test_the_length_of_a_run_is_a_whole_number(random_theta, num_steps):
    artifact = Artifact(RULE, random_theta(RULE))
    with pytest.raises(ValueError, match=r"num_steps = .* must be a whole"):
        artifact.as_optax({}, num_steps)
    for length in (1, np.int32(1), jax.numpy.asarray(1)):
        assert artifact.as_optax({}, length).init({}).step == 0


def test_tensors_are_those_of_pylo(golden, random_theta, tmp_path):
    theirs = golden("pylo_metamlp")
    optimizer = SmallFC()
    theta = random_theta(optimizer)
    Artifact(optimizer, theta).save(tmp_path / "artifact")
    wanted = load_file(theirs / "model.safetensors")
    tensors = load_file(tmp_path / "artifact" / "model.safetensors")
    describe = lambda group: {k: (v.shape, v.dtype) for k, v in group.items()}  # noqa: E731
    assert describe(tensors) == describe(wanted)
    for name, layer in (("input", 0), ("linear_0", 1), ("output", 2)):
        kernel, bias = (theta[f"layer_{layer}"][x] for x in ("kernel", "bias"))
        np.testing.assert_array_equal(tensors[f"network.{name}.weight"], kernel.T)
        np.testing.assert_array_equal(tensors[f"network.{name}.bias"], bias)
    config = json.loads((tmp_path / "artifact" / "config.json").read_text())
    for key, value in json.loads((theirs / "config.json").read_text()).items():
        assert config[key] == value


def test_an_existing_folder_is_not_overwritten(artifact, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=str(folder)):
        artifact.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    empty = folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(FileExistsError):
        artifact.save(empty)


@pytest.mark.parametrize("broken", ["save_file", "write_sums", "rename"])
def test_a_crash_during_writing_leaves_nothing(artifact, tmp_path, monkeypatch, broken):
    def crash(*arguments, **options):
        raise KeyboardInterrupt

    place = {
        "save_file": lopt.release.artifact,
        "write_sums": configuration.files,
        "rename": os,
    }
    monkeypatch.setattr(place[broken], broken, crash)
    with pytest.raises(KeyboardInterrupt):
        artifact.save(tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("where", ["layer_1", "momentum_offsets"])
def test_a_theta_that_is_not_finite_is_not_released(artifact, tmp_path, where, value):
    theta = jax.tree.map(np.array, artifact.theta)
    jax.tree.leaves(theta[where])[0].flat[0] = value
    with pytest.raises(ValueError, match="not finite"):
        Artifact(RULE, theta).save(tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def load_in_jax(folder):
    return Artifact.load(folder)


def load_in_torch(folder):
    torch = pytest.importorskip("torch")
    from torch_lopt import LearnedOptimizer

    params = [("p", torch.nn.Parameter(torch.ones(2)))]
    return LearnedOptimizer.from_pretrained(params, folder, base=None)


LOADERS = {"jax": load_in_jax, "torch": load_in_torch}


@pytest.fixture(params=LOADERS)
def refusal(request):
    """Loads a folder that must be refused in one line; returns the line."""

    def load(folder):
        with pytest.raises(ValueError) as info:
            LOADERS[request.param](folder)
        assert "\n" not in str(info.value)
        return str(info.value)

    return load


@pytest.mark.parametrize("loader", LOADERS)
def test_both_libraries_load_what_is_saved(saved, loader):
    assert LOADERS[loader](saved) is not None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_flipped_byte_is_refused(folder, refusal, name, place):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)
    assert str(path) in refusal(folder)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_file_is_refused(folder, refusal, name, keep):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_refused(folder, refusal, name):
    (folder / name).unlink()
    assert str(folder / name) in refusal(folder)


def test_a_missing_folder_is_refused(tmp_path, refusal):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def transpose(tensors):
    name = "network.input.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


WEIGHTS = {
    "transposed": transpose,
    "flat": lambda t: t.update({"network.input.weight": np.zeros(186, "float32")}),
    "missing": lambda t: t.pop("network.output.bias"),
    "extra": lambda t: t.update({"other": np.zeros(1, "float32")}),
    "float64": lambda t: t.update({"network.output.bias": np.zeros(2)}),
    "nan": lambda t: t["network.linear_1.weight"].__setitem__((2, 3), np.nan),
    "inf": lambda t: t["network.input.bias"].__setitem__(0, -np.inf),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_wrong_tensors_are_refused_though_their_sums_fit(folder, refusal, case):
    edit_weights(folder, WEIGHTS[case])
    assert str(folder / "model.safetensors") in refusal(folder)


CONFIGS = {
    "newer schema": lambda c: c.update(schema_version=4),
    "general schema": lambda c: c.update(schema_version=2),
    "no axes": lambda c: c["optimizer"].pop("factored_axes"),
    "other axes": lambda c: c["optimizer"].update(factored_axes="rows"),
    "older schema": lambda c: c.update(schema_version=0),
    "no schema": lambda c: c.pop("schema_version"),
    "no optimizer": lambda c: c.pop("optimizer"),
    "other class": lambda c: c["optimizer"].update({"class": "VeLO"}),
    "other features": lambda c: c["optimizer"]["features"].reverse(),
    "other rules": lambda c: c["optimizer"].update(rules="SGD_LIKE"),
    "one offset": lambda c: c["optimizer"].update(momentum_offsets=[0.0]),
    "nan offset": lambda c: c["optimizer"].update(rms_offsets=[float("nan")]),
    "decay of one": lambda c: c["optimizer"].update(momentum_decays=[0.5, 1.0]),
    "no floor": lambda c: c["optimizer"]["epsilons"].pop("row_col"),
    "new floor": lambda c: c["optimizer"]["epsilons"].update(other=1e-3),
    "size as text": lambda c: c["optimizer"].update(hidden_size="6"),
    "size as truth": lambda c: c["optimizer"].update(hidden_layers=True),
    "huge step": lambda c: c["optimizer"].update(step_mult=10**400),
    "sizes disagree": lambda c: c.update(hidden_layers=1),
    "inputs disagree": lambda c: c.update(input_size=39),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_not_understood_is_refused(folder, refusal, case):
    edit_config(folder, CONFIGS[case])
    assert str(folder / "config.json") in refusal(folder)


@pytest.mark.parametrize(
    ("provenance", "where"),
    [
        ({"config": {"task": ["a", "b\ud800"]}}, r"provenance\.config\.task\[1\] = "),
        ({"\udcff": 1}, "a key of provenance = "),
    ],
)
def test_texts_that_no_file_can_hold_are_refused(artifact, folder, provenance, where):
    with pytest.raises(ValueError, match=f"^{where}.* must be Unicode text"):
        dataclasses.replace(artifact, provenance=provenance)
    edit_config(folder, lambda c: c.update(provenance=provenance))
    with pytest.raises(ValueError, match=rf"config\.json .*{where}.*Unicode text"):
        Artifact.load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "3", "", "[" * 100_000, b"\xff\xfe\x00"])
def test_broken_json_is_refused(folder, refusal, text):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "config.json").write_bytes(data)
    renew_sums(folder)
    assert str(folder / "config.json") in refusal(folder)


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_in_place_of_the_weights_is_not_run(folder, refusal, tmp_path):
    weights = folder / "model.safetensors"
    weights.write_bytes(pickle.dumps(Payload(tmp_path / "harm")))
    renew_sums(folder)
    assert str(weights) in refusal(folder)
    assert not (tmp_path / "harm").exists()
    pickle.loads(weights.read_bytes()).close()
    assert (tmp_path / "harm").exists()  # it would have been harmful


@pytest.mark.parametrize("size", [0, 4, 100, 1000])
def test_truncated_weights_are_refused_though_their_sums_fit(folder, refusal, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    renew_sums(folder)
    assert str(path) in refusal(folder)


def test_other_factored_axes_in_the_first_schema_are_refused(folder):
    edit_config(folder, lambda config: config.update(schema_version=1))
    with pytest.raises(
        ValueError, match=r"optimizer\.factored_axes = 'matrix'"
    ) as info:
        Artifact.load(folder)
    assert "\n" not in str(info.value)


def test_an_artifact_that_is_replaced_while_it_is_read_is_refused(
    artifact, folder, monkeypatch
):
    other = dataclasses.replace(artifact, provenance={"another": 1})
    real = lopt.release.artifact.weights.read_json

    def read_and_replace(path):
        config = real(path)
        other.save(folder, replace=True)
        return config

    with monkeypatch.context() as patch:
        patch.setattr(lopt.release.artifact.weights, "read_json", read_and_replace)
        with pytest.raises(ValueError, match="was replaced while it was read"):
            Artifact.load(folder)
    assert Artifact.load(folder).provenance == {"another": 1}
