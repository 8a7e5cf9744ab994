"""Weights of others from the command line, and back."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.convert import Convert, read, with_fields, write
from lopt import Artifact, Celo2, SmallFC, VeLO
from lopt.interchange import learned_optimization, pylo_velo, theta_files
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


def arrays_of(optimizer, seed=0):
    """θ of small_fc by the paths of learned_optimization."""
    theta = optimizer.init(jax.random.key(seed))
    artifact = Artifact(optimizer, theta)
    tensors, _ = theta_files.to_tensors(artifact, learned_optimization.FORMATS)
    return artifact, tensors


@pytest.mark.parametrize("prefix", ["", "theta/"])
def test_an_npz_of_theta_by_path_becomes_an_artifact(prefix, tmp_path):
    made, tensors = arrays_of(SmallFC(hidden_size=3, step_mult=0.01))
    beside = {"config": np.array("{}")} if prefix else {}
    stored = {f"{prefix}{name}": value for name, value in tensors.items()}
    np.savez(tmp_path / "theta.npz", **stored, **beside)
    folder = converted(
        tmp_path / "theta.npz", tmp_path / "out", fields=("step_mult=0.01",)
    )
    found = Artifact.load(folder)
    assert found.optimizer == made.optimizer
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a == b).all(), made.theta, found.theta)
    )
    assert found.provenance["imported"]["from"] == "theta.npz"


def test_an_npz_that_is_damaged_or_incomplete_is_refused_in_one_line(tmp_path):
    _, tensors = arrays_of(SmallFC(hidden_size=3))
    path = tmp_path / "theta.npz"

    def refused(message, **changes):
        np.savez(
            path, **{k: v for k, v in (tensors | changes).items() if v is not None}
        )
        with pytest.raises(ValueError, match=message) as error:
            read(Convert(path, tmp_path / "out"))
        assert "\n" not in str(error.value) and "theta.npz" in str(error.value)

    refused("lacks the tensor rms_decays", rms_decays=None)
    refused("b1 is float32 of shape .4,., must be .* .3,.", **{"nn/~/b1": np.ones(4)})
    refused("not finite", rms_decays=np.full(1, np.nan))
    refused("unknown tensors: .'more'", more=np.ones(1))
    refused("no theta of a class that is known", **dict.fromkeys(tensors), a=np.ones(1))
    refused("allow_pickle", rms_decays=np.array([{}], object))
    refused("cannot be read as npz", **{"nn/~/w0/x": np.ones(1)})
    content = path.read_bytes()
    for damaged in (b"", b"PK", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read as npz"):
            read(Convert(path, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"none\.npz cannot be read"):
        read(Convert(tmp_path / "none.npz", tmp_path / "out"))


def test_an_npz_of_reference_trajectories_holds_theta(golden, tmp_path):
    path = golden("small_fc_step0.01.npz")
    fields = ("step_mult=0.01", "factored_axes=tensor")
    found = Artifact.load(converted(path, tmp_path / "out", fields=fields))
    assert found.optimizer == SmallFC(step_mult=0.01, factored_axes="tensor")
    kernel = found.theta["layer_0"]["kernel"]
    np.testing.assert_array_equal(kernel, np.load(path)["theta/nn/~/w0"])
