"""Fixtures of the adapter's tests: random networks, artifact folders, golden files."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

pytest.importorskip("torch")

import safetensors.torch
import torch

from torch_lopt import SmallFC


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trajectory(golden):
    """Opens a golden file: name -> (arrays, its configuration)."""

    def load(name):
        with np.load(golden(f"{name}.npz"), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return arrays, json.loads(str(arrays["config"]))

    return load


@pytest.fixture
def random_weights():
    """Random weights for a rule, of the size that keeps every layer's output near 1."""

    def draw(rule, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5
            for name, shape in rule.weight_shapes.items()
        }

    return draw


def config_of(rule):
    """What the exporter writes into config.json for a rule."""
    fields = dataclasses.asdict(rule)
    return {
        "input_size": rule.input_size,
        "hidden_size": rule.hidden_size,
        "hidden_layers": rule.hidden_layers - 1,
        "schema_version": 3,
        "optimizer": {
            "class": "SmallFC",
            **fields,
            "features": rule.feature_names,
            "base": {"width": 32, "depth": 2},
        },
        "provenance": {},
        "pylo": {"exact": False, "reason": "none"},
    }


def write_sums(folder):
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors")
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def write_folder(tmp_path, random_weights):
    """Writes an artifact folder; `edit` changes its config, `weights` its tensors."""

    def write(rule=None, weights=None, edit=None, name="artifact"):
        rule = rule or SmallFC()
        folder = tmp_path / name
        folder.mkdir()
        config = config_of(rule)
        if edit:
            edit(config)
        (folder / "config.json").write_text(json.dumps(config))
        safetensors.torch.save_file(
            random_weights(rule) if weights is None else weights,
            folder / "model.safetensors",
        )
        write_sums(folder)
        return folder

    return write


@pytest.fixture
def sums():
    """Renews SHA256SUMS of a folder, as an attacker or a broken exporter would."""
    return write_sums
