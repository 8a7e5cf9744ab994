"""Weights of others from the command line, and back."""

import dataclasses
from pathlib import Path

import jax
import pytest

from experiments.convert import Convert, read, with_fields, write
from lopt import Artifact, Celo2, VeLO
from lopt.interchange import pylo_velo
from parametrization import ADAM_LIKE

PYLO = Path(__file__).parents[1] / "golden" / "pylo_metamlp"


def converted(source, target, **fields):
    convert = Convert(source, target, **fields)
    write(with_fields(read(convert), convert.fields), convert)
    return target


def test_what_is_written_for_pylo_is_read_again(tmp_path):
    celo2 = Celo2(hidden_size=3)
    made = Artifact(celo2, celo2.init(jax.random.key(0)))
    made.save(tmp_path / "ours")
    theirs = converted(tmp_path / "ours", tmp_path / "theirs", to="pylo")
    back = Artifact.load(converted(theirs, tmp_path / "back"))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a == b).all(), made.theta, back.theta)
    )


@pytest.mark.parametrize("part", [".", "checkpoints/step_00000020"])
def test_a_training_run_is_refused_with_the_command_that_releases_it(part, tmp_path):
    run = Path(__file__).parents[1] / "golden" / "run_schema_1"
    with pytest.raises(
        ValueError, match=r"safetensors is missing.*experiments\.export"
    ):
        read(Convert(run / part, tmp_path / "out"))


@pytest.mark.slow
def test_fields_that_the_source_does_not_say(tmp_path):
    velo = VeLO(2, param_inits=3, bugged_losses=True, step_mult=0.01)
    artifact = Artifact(velo, velo.init(jax.random.key(0)))
    pylo_velo.save(artifact, tmp_path / "mlp", tmp_path / "rnn")
    target = converted(
        tmp_path / "mlp",
        tmp_path / "velo",
        scheduler=tmp_path / "rnn",
        fields=("bugged_losses=true", "step_mult=0.01", "rules=ADAM_LIKE"),
    )
    want = dataclasses.replace(velo, rules=ADAM_LIKE)
    assert Artifact.load(target).optimizer == want
    for field, message in (
        ("step_mult", "must be NAME=VALUE"),
        ("step_mul=1", "step_mul is not a field"),
        ("step_mult=-1", "step_mult = -1.0 must"),
    ):
        with pytest.raises(ValueError, match=message):
            converted(PYLO, tmp_path / "no", fields=(field,))
    assert not (tmp_path / "no").exists()


def test_a_pair_of_folders_is_written_whole_or_not_at_all(tmp_path):
    velo = VeLO(2, param_inits=3)
    artifact = Artifact(velo, velo.init(jax.random.key(0)))
    (tmp_path / "rnn").mkdir()
    with pytest.raises(FileExistsError, match="rnn exists already; nothing was"):
        pylo_velo.save(artifact, tmp_path / "mlp", tmp_path / "rnn")
    with pytest.raises(ValueError, match="cannot be both folders"):
        pylo_velo.save(artifact, tmp_path / "one", tmp_path / "one")
    assert [p.name for p in tmp_path.iterdir()] == ["rnn"]
