"""A run directory from before `factored_axes` is still the run that it was."""

import json

from experiments.presets.configs import TrainConfig
from experiments.presets.serialization import decode, digest_of, encode
from experiments.run.run_directory import read_config
from lopt import Artifact


def test_an_old_run_factors_tensors_and_is_itself(golden):
    folder = golden("run_schema_1")
    assert "factored_axes" not in read_config(folder)["lopt"]
    config = decode(TrainConfig, read_config(folder))
    assert config.lopt.factored_axes == "tensor"
    assert Artifact.load(folder / "artifact").optimizer.factored_axes == "tensor"
    (origin,) = folder.glob("checkpoints/*/origin.json")
    assert digest_of(encode(config)) == json.loads(origin.read_text())["run"]
