"""The command that trains three stages and draws what they make."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from evaluation.generation.plots import tile
from experiments import generate
from experiments.command_line import InputError
from experiments.generate import GenerateConfig
from experiments.presets.serialization import decode, encode
from lopt import Artifact, SmallFC
from tasks.data.embedded import Digits
from tasks.generation.pipeline import Sampling
from tests.tasks.generation.test_stages import C


def test_pictures_are_tiled_row_by_row():
    pictures = np.arange(2 * 3 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 3, 4, 5, 3)
    whole = tile(pictures)
    assert whole.shape == (2 * 6, 3 * 7, 3)
    assert np.array_equal(whole[6:10, 14:19], pictures[1, 2])
    assert (whole[4:6] == 255).all() and (whole[:, 5:7] == 255).all()
    grey = tile(pictures[..., :1])
    assert np.array_equal(grey[6:10, 14:19], np.repeat(pictures[1, 2, ..., :1], 3, -1))


def test_a_configuration_survives_json_and_the_command_line(monkeypatch):
    config = GenerateConfig(num_steps=(1, 2, 3), sampling=Sampling(sampler="ddim"))
    stored = json.loads(json.dumps(encode(config)))
    assert decode(GenerateConfig, stored) == config
    seen = []
    monkeypatch.setattr(generate, "run", seen.append)
    arguments = ["--num-steps", "1", "2", "3", "--sampling.sampler", "ddim"]
    monkeypatch.setattr("sys.argv", ["generate", *arguments])
    generate.main()
    assert seen == [config]
    for wrong, message in (
        (["--artifact", "/nowhere"], "--artifact /nowhere is not a folder"),
        (["--num-steps", "1", "2"], "num-steps"),
        (["--sampling.sampler", "euler"], "euler"),
        (["--num-samples", "0"], "num_samples = 0 must be a whole number"),
    ):
        monkeypatch.setattr("sys.argv", ["generate", *wrong])
        with pytest.raises(InputError, match=message):
            generate.main()


def test_impossible_fields_are_refused():
    for fields, message in (
        ({"num_steps": (1, 0, 1)}, r"num_steps\[1\] = 0 must be a whole number"),
        ({"learning_rates": (1.0, -1.0, 1.0)}, "learning_rates = .* must be positive"),
        ({"num_samples": 0}, "num_samples = 0 must be a whole number"),
        ({"seed": -1}, "seed = -1 must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            GenerateConfig(**fields)


@pytest.mark.slow
def test_the_stages_are_trained_by_adam_or_by_a_learned_optimizer(tmp_path, capsys):
    tiny = GenerateConfig(
        task=C,
        num_steps=(20, 10, 10),
        sampling=Sampling(code_steps=2, latent_steps=2),
        num_samples=2,
        out_dir=tmp_path / "adam",
    )
    generate.run(tiny)
    lopt = SmallFC(step_mult=0.01)
    Artifact(lopt, lopt.init(jax.random.key(0))).save(tmp_path / "artifact")
    learned = dataclasses.replace(
        tiny, artifact=tmp_path / "artifact", out_dir=tmp_path / "learned"
    )
    generate.run(learned)
    assert "stage C: 10 steps, loss " in capsys.readouterr().out
    losses = []
    for config in (tiny, learned):
        png = (config.out_dir / "samples.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        stored = json.loads((config.out_dir / "generate.json").read_text())
        assert decode(GenerateConfig, stored["config"]) == config
        assert [len(stored["losses"][stage]) for stage in "ABC"] == [20, 10, 10]
        losses.append(stored["losses"]["A"])
    # The same start, another path.
    assert losses[0][0] == losses[1][0] and losses[0][-1] != losses[1][-1]
    assert losses[0][-1] < losses[0][0]


@pytest.mark.slow
def test_other_images_are_generated_too(tmp_path):
    stage_a = dataclasses.replace(C.stage_b.stage_a, data=Digits())
    stage_b = dataclasses.replace(C.stage_b, stage_a=stage_a)
    model = dataclasses.replace(C.model, num_classes=10)
    task = dataclasses.replace(C, model=model, stage_b=stage_b)
    config = GenerateConfig(task, (2, 2, 2), num_samples=1, out_dir=tmp_path)
    generate.run(config)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert generate.captions(config)[3] == "class 3"
