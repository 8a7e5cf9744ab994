"""The reader takes what an exporter writes, and refuses everything else in one line."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")

import safetensors.torch
import torch

from torch_lopt import Epsilons, LearnedOptimizer, SmallFC, load_artifact


def test_a_folder_reads_back(write_folder, random_weights):
    rule = SmallFC(
        hidden_size=8,
        hidden_layers=3,
        step_mult=0.02,
        exp_mult=0.003,
        momentum_offsets=(0.1, -0.2, 0.3),
        rms_offsets=(0.4,),
        adafactor_offsets=(-0.5, 0.6, 0.7),
        epsilons=Epsilons(normalizer=1e-20, one_dimensional=1e-7),
        rules="ADAM_LIKE",
    )
    artifact = load_artifact(write_folder(rule))
    assert artifact.rule == rule
    want = random_weights(rule)
    assert set(artifact.weights) == set(want)
    assert all(torch.equal(artifact.weights[name], want[name]) for name in want)


@pytest.mark.parametrize("factored_axes", ["tensor", "matrix"])
def test_the_third_schema_says_what_is_factored(write_folder, factored_axes):
    rule = SmallFC(factored_axes=factored_axes)
    assert load_artifact(write_folder(rule)).rule == rule


def test_in_the_first_schema_tensors_are_factored(golden, write_folder):
    assert load_artifact(golden("artifact_schema_1")).rule.factored_axes == "tensor"

    def first(config):
        config["schema_version"] = 1
        del config["optimizer"]["factored_axes"]

    assert load_artifact(write_folder(edit=first)).rule == SmallFC(
        factored_axes="tensor"
    )


def refusal(folder):
    with pytest.raises(ValueError) as info:
        LearnedOptimizer.from_pretrained([torch.nn.Parameter(torch.ones(2))], folder)
    message = str(info.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "SHA256SUMS"])
def test_a_missing_file_is_named(write_folder, name):
    folder = write_folder()
    (folder / name).unlink()
    assert str(folder / name) in refusal(folder)


def test_a_missing_folder_is_named(tmp_path):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_file_is_named(write_folder, name, damage):
    folder = write_folder()
    data = bytearray((folder / name).read_bytes())
    data[-5] ^= 1
    (folder / name).write_bytes(data if damage == "flip" else data[: len(data) // 2])
    message = refusal(folder)
    assert str(folder / name) in message and "checksum" in message


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", "00  config.json\n", b"\xff\xfe\x00  config.json\n"]
)
def test_damaged_checksums_are_refused(write_folder, text):
    folder = write_folder()
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "SHA256SUMS").write_bytes(data)
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "3", "", '{"schema_version": NaN}', "[" * 100_000, b"\xff\xfe"],
    ids=["open", "list", "number", "empty", "nan", "deep", "bytes"],
)
def test_broken_json_is_refused(write_folder, sums, text):
    folder = write_folder()
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "config.json").write_bytes(data)
    sums(folder)
    assert str(folder / "config.json") in refusal(folder)


def put(*path, value):
    """An edit of the configuration: sets, or with `...` deletes, one entry."""

    def edit(config):
        *above, last = path
        for key in above:
            config = config[key]
        if value is ...:
            del config[last]
        else:
            config[last] = value

    return edit


EDITS = {
    "general": (put("schema_version", value=2), "lacks 'base'"),
    "newer": (put("schema_version", value=4), "schema_version 4 is not one of"),
    "older": (put("schema_version", value=0), "schema_version"),
    "no version": (put("schema_version", value=...), "schema_version"),
    "text version": (put("schema_version", value="1"), "schema_version"),
    "no optimizer": (put("optimizer", value=...), "optimizer"),
    "class": (put("optimizer", "class", value="VeLO"), "VeLO"),
    "features": (put("optimizer", "features", value=["gradient"]), "features"),
    "epsilon": (put("optimizer", "epsilons", "row_col", value=-1e-8), "row_col"),
    "no epsilon": (put("optimizer", "epsilons", "row_col", value=...), "row_col"),
    "new epsilon": (put("optimizer", "epsilons", "other", value=0.1), "other"),
    "decays": (put("optimizer", "momentum_decays", value=[0.9, 1.0, 0.1]), "momentum"),
    "fewer": (put("optimizer", "adafactor_decays", value=[0.9]), "adafactor"),
    "offsets": (put("optimizer", "rms_offsets", value=[0.0, 0.0]), "rms_offsets"),
    "text": (put("optimizer", "rms_decays", value="0.9"), "rms_decays"),
    "two rms": (put("optimizer", "rms_decays", value=[0.9, 0.99]), "rms"),
    "bool": (put("optimizer", "step_mult", value=True), "step_mult"),
    "huge": (put("optimizer", "step_mult", value=10**400), "too large"),
    "axes": (put("optimizer", "factored_axes", value="rows"), "factored_axes"),
    "no axes": (put("optimizer", "factored_axes", value=...), "factored_axes"),
    "axes of 1": (put("schema_version", value=1), "factored_axes is 'matrix'"),
    "rules": (put("optimizer", "rules", value="SGD_LIKE"), "SGD_LIKE"),
    "hidden": (put("optimizer", "hidden_size", value=0), "hidden_size"),
    "layers": (put("hidden_layers", value=2), "hidden_layers"),
    "inputs": (put("input_size", value=38), "input_size"),
    "times": (put("optimizer", "time_scales", value=[0] * 11), "time_scales"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_configuration_not_understood_is_refused(write_folder, case):
    edit, word = EDITS[case]
    folder = write_folder(edit=edit)
    message = refusal(folder)
    assert str(folder / "config.json") in message and word in message


def test_other_rms_counts_are_refused():
    with pytest.raises(ValueError, match="rms_decays must be one"):
        SmallFC(rms_decays=(0.9, 0.99), rms_offsets=(0.0, 0.0))
    with pytest.raises(ValueError, match="pairwise"):
        SmallFC(momentum_decays=(0.9,), momentum_offsets=(0.0,))


def test_wrong_tensors_are_refused(write_folder, random_weights):
    good = random_weights(SmallFC())
    bias, matrix = "network.output.bias", "network.input.weight"
    cases = {
        "missing": {k: v for k, v in good.items() if k != bias},
        "unexpected": {**good, "network.linear_1.bias": torch.zeros(32)},
        "(39, 32)": {**good, matrix: good[matrix].T.contiguous()},
        "float64": {**good, bias: good[bias].double()},
        "finite": {**good, bias: torch.tensor([0.0, float("nan")])},
    }
    for i, (word, weights) in enumerate(cases.items()):
        folder = write_folder(weights=weights, name=f"artifact_{i}")
        message = refusal(folder)
        assert str(folder / "model.safetensors") in message and word in message


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_in_place_of_weights_is_not_run(write_folder, sums, tmp_path):
    folder = write_folder()
    torch.save(Payload(tmp_path / "harm"), folder / "model.safetensors")
    sums(folder)
    assert str(folder / "model.safetensors") in refusal(folder)
    assert not (tmp_path / "harm").exists()


def test_truncation_is_refused_even_with_a_fitting_checksum(write_folder, sums):
    folder = write_folder()
    path = folder / "model.safetensors"
    for size in (0, 4, 100, path.stat().st_size - 1):
        path.write_bytes(safetensors.torch.save({"x": torch.ones(1000)})[:size])
        sums(folder)
        assert str(path) in refusal(folder)


def test_pylo_s_own_folder_is_refused_with_the_reason(golden, tmp_path, sums):
    folder = tmp_path / "pylo"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((golden("pylo_metamlp") / name).read_bytes())
    sums(folder)
    assert "schema_version" in refusal(folder)
    assert "optimizer" not in json.loads((folder / "config.json").read_text())


def test_the_adapter_needs_no_numpy_and_loads_no_jax(golden):
    code = f"""
import sys
sys.modules["numpy"] = None  # as if it were not installed
import torch, torch_lopt
model = torch.nn.Linear(3, 2)
optimizer = torch_lopt.LearnedOptimizer.from_pretrained(
    model, {str(golden("artifact_schema_1"))!r}, base=None
)
before = model.weight.detach().clone()
model(torch.ones(4, 3)).square().sum().backward()
optimizer.step()
print(not torch.equal(model.weight, before), {"jax", "flax"} & sys.modules.keys())
"""
    run = [sys.executable, "-W", "ignore", "-c", code]
    out = subprocess.run(run, capture_output=True, text=True)
    assert out.stdout == "True set()\n", out.stderr
