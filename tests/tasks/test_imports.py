"""Importing the packages stays light: no other framework comes along."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "huggingface_hub",
    "PIL",
    "sklearn",
    "orbax",
    "torch",
    "array_record",
    "grain",
    "learned_optimization",
    "matplotlib",
    "tyro",
}
CODE = """
import importlib, json, sys
heavy = {}
for package in ("parametrization", "tasks", "lopt", "metatrain"):
    importlib.import_module(package)
    heavy[package] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(heavy))
"""


@pytest.fixture(scope="module")
def loaded():
    out = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


@pytest.mark.parametrize("package", ["parametrization", "tasks", "lopt", "metatrain"])
def test_an_import_loads_no_other_framework(loaded, package):
    assert package in loaded[package] and "jax" in loaded[package]
    assert sorted(HEAVY & set(loaded[package])) == []


def test_parametrization_owes_nothing_to_the_rooms_above(loaded):
    above = {"tasks", "lopt", "metatrain", "evaluation", "experiments"}
    assert not above & set(loaded["parametrization"])
