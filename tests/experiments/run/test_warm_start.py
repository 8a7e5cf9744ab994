"""A run that begins with an artifact, and runs that stop by themselves."""

from __future__ import annotations

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train as training_command
from experiments.command_line import ComputationError, InputError
from experiments.presets import configs
from experiments.presets.serialization import encode
from experiments.run.release import base_sizes, make_artifact
from experiments.run.run_directory import METRICS, PARENT, TIMING, VALIDATION, read_rows
from experiments.run.training_state import load_trained
from experiments.run.warm_start import begin_with, classes, initial_theta
from experiments.train import train
from lopt.learned.celo import Celo
from lopt.learned.small_fc import SmallFC
from lopt.per_parameter.forms import Execution
from lopt.release.artifact import Artifact
from lopt.wrappers import ScheduledSteps
from metatrain.estimators.pes import PES
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from tasks.classification import ImageClassification
from tasks.models.mlp import MLP

LOPT = SmallFC(hidden_size=3, step_mult=0.01)
TINY = configs.TrainConfig(
    task=ImageClassification(MLP(widths=(4,), base_width=4), batch_size=8),
    lopt=LOPT,
    estimator=PES(num_pairs=1, chunk=1, truncation=2, lengths=EpisodeLengths(4, 4)),
    outer=OuterOptimizer(warmup_steps=0, frozen=("layer_1",), averaging=0.0),
    num_steps=3,
    validation=configs.Validation(every=10, num_steps=2, num_seeds=1),
)


def of(directory, **fields):
    run = configs.RunOptions(directory=directory, checkpoint_every=2, log_every=1)
    return dataclasses.replace(TINY, run=run, **fields)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent") / "artifact"
    theta = LOPT.init(jax.random.key(77))
    Artifact(LOPT, theta, {"width": 4}, {"note": "phase 1"}).save(folder)
    return folder


def leaves_equal(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_a_run_begins_with_an_artifact_freezes_a_part_and_names_its_parent(
    parent, tmp_path
):
    path = tmp_path / "run"
    config = of(path, init_from=parent)
    stopped = dataclasses.replace(config.run, stop_after=2)
    train(dataclasses.replace(config, run=stopped), "tiny")
    theta = Artifact.load(parent).theta
    _, state = load_trained_without_best(path, config)
    assert leaves_equal(state.outer.theta["layer_1"], theta["layer_1"])
    assert not leaves_equal(state.outer.theta["layer_0"], theta["layer_0"])
    # The parent is needed only at the beginning.
    moved = parent.rename(parent.with_name("moved"))
    try:
        train(config, "tiny")
    finally:
        moved.rename(parent)
    released = Artifact.load(path / "artifact")
    recorded = released.provenance["parent"]
    sums = (parent / "SHA256SUMS").read_bytes()
    assert recorded["sha256"] == hashlib.sha256(sums).hexdigest()
    assert recorded["parts"] == sorted(theta)
    assert recorded["provenance"] == {"note": "phase 1"}
    assert leaves_equal(released.theta["layer_1"], theta["layer_1"])
    rows = read_rows(path / METRICS)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"signal_to_noise", "decay/momentum_0", "skipped"} <= set(rows[0])
    assert all(row["inner_steps_per_second"] > 0 for row in read_rows(path / TIMING))
    (path / PARENT).write_text("{")
    with pytest.raises(InputError, match=r"parent.json is damaged"):
        train(dataclasses.replace(config, num_steps=4), "tiny")


def load_trained_without_best(path, config):
    """The newest state of a run, validated or not."""
    from experiments.run.training_state import first_state
    from metatrain.checkpoint import Checkpoints

    template = jax.eval_shape(lambda: first_state(config.build()))
    restored = Checkpoints(path / "checkpoints").restore(template)
    return config, restored.state


def test_a_phase_takes_the_parts_that_there_are():
    rule, both = Celo(lstm_hidden_size=3, phase="rule"), Celo(lstm_hidden_size=3)
    theta, fresh = rule.init(jax.random.key(1)), both.init(jax.random.key(2))
    only = Artifact(rule, {"rule": theta["rule"]}, {}, {})
    begun, parts = begin_with(only, both, fresh, "there")
    assert parts == ["rule"]
    assert leaves_equal(begun["rule"], theta["rule"])
    assert leaves_equal(begun["scheduler"], fresh["scheduler"])
    wide = Celo(lstm_hidden_size=5)
    with pytest.raises(ValueError, match=r"theta\['scheduler'\].*\[.*3.*there"):
        begin_with(
            Artifact(rule, theta, {}, {}), wide, wide.init(jax.random.key(0)), "x"
        )


def test_base_sizes_are_those_of_all_groups_in_the_models_order():
    sizes = configs.QUICKSTART.task.model.base_sizes
    assert [*base_sizes(configs.QUICKSTART).items()] == [*sizes.items()]
    config = configs.on_distribution("velo_like")
    groups = tuple(config.task.groups[i] for i in (0, 3))
    task = dataclasses.replace(config.task, groups=groups)
    assert [group.task.model.base_sizes["depth"] for group in groups] == [3, 2]
    assert base_sizes(dataclasses.replace(config, task=task)) == {"width": 32}


def test_an_artifact_of_another_class_or_none_is_refused(parent, tmp_path):
    celo = of(tmp_path / "celo", init_from=parent, lopt=Celo(lstm_hidden_size=2))
    outer = dataclasses.replace(TINY.outer, frozen=())
    with pytest.raises(InputError, match="holds a SmallFC; this run trains a Celo"):
        train(dataclasses.replace(celo, outer=outer), "tiny")
    with pytest.raises(InputError, match="nowhere"):
        train(of(tmp_path / "none", init_from=tmp_path / "nowhere"), "tiny")


def test_wrappers_do_not_keep_a_rule_from_its_theta(parent, tmp_path, capsys):
    artifact = Artifact.load(parent)
    wrapped = ScheduledSteps(artifact.optimizer, schedule="cosine")
    theta, parts = begin_with(artifact, wrapped, artifact.theta, parent)
    assert leaves_equal(theta, artifact.theta) and parts == sorted(theta)
    assert classes(wrapped) == ["ScheduledSteps", "SmallFC"]
    other = ScheduledSteps(Celo(lstm_hidden_size=2), schedule="cosine")
    fresh = other.init(jax.random.key(0))
    with pytest.raises(ValueError, match="holds a SmallFC; this run trains a Celo"):
        begin_with(artifact, other, fresh, parent)
    config = of(tmp_path / "run", init_from=parent, lopt=wrapped)
    initial_theta(config, config.build(), tmp_path / "run")
    told = capsys.readouterr().err
    assert "was trained as SmallFC, which is ScheduledSteps of SmallFC here" in told
    assert "inner" not in told


def test_a_field_that_an_artifact_lacks_is_shown_as_what_it_stands_for(
    tmp_path, capsys
):
    before = dataclasses.replace(LOPT, factored_axes="tensor")
    assert "factored_axes" not in encode(before)
    folder = tmp_path / "artifact"
    Artifact(before, before.init(jax.random.key(1)), {"width": 4}, {}).save(folder)
    config = of(tmp_path / "run", init_from=folder)
    initial_theta(config, config.build(), tmp_path / "run")
    assert "was trained with factored_axes: tensor -> matrix here" in (
        capsys.readouterr().err
    )


def test_fields_that_are_no_property_of_trained_weights_are_not_compared(
    parent, tmp_path, capsys
):
    silent = dataclasses.replace(LOPT, output_scale=0.0, execution=Execution("plain"))
    config = of(tmp_path / "run", init_from=parent, lopt=silent)
    initial_theta(config, config.build(), tmp_path / "run")
    assert "was trained with" not in capsys.readouterr().err
    larger = dataclasses.replace(silent, step_mult=0.02)
    config = of(tmp_path / "other", init_from=parent, lopt=larger)
    initial_theta(config, config.build(), tmp_path / "other")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("was trained with step_mult: 0.01 -> 0.02 here")


def test_a_part_that_theta_lacks_cannot_be_frozen(tmp_path):
    outer = dataclasses.replace(TINY.outer, frozen=("scheduler",))
    with pytest.raises(InputError, match=r"theta has no part 'scheduler'.*layer_0"):
        train(of(tmp_path / "run", outer=outer), "tiny")


@dataclasses.dataclass(frozen=True)
class Spoiling(OuterOptimizer):
    """Its updates are never finite."""

    def build(self, num_steps):
        import optax

        return optax.scale(jnp.inf)


@pytest.mark.slow
def test_too_many_skipped_steps_end_the_run_and_lose_nothing(tmp_path, monkeypatch):
    path = tmp_path / "run"
    # It could not be read back.
    monkeypatch.setattr(training_command, "_check_readable", lambda *of: None)
    outer = Spoiling(max_skipped=2)
    with pytest.raises(ComputationError, match="2 outer steps in a row, up to step 2"):
        train(of(path, outer=outer), "tiny")
    rows = read_rows(path / METRICS)
    assert [row["skipped"] for row in rows] == [1.0, 1.0]
    assert not (path / "artifact").exists()


@pytest.mark.slow
def test_theta_can_be_chosen_on_a_suite(tmp_path):
    validation = dataclasses.replace(TINY.validation, suite="quickstart")
    path = tmp_path / "run"
    config = of(path, num_steps=1, validation=validation)
    train(config, "tiny")
    (row,) = read_rows(path / VALIDATION)
    cells = [name for name in row if name.startswith("held_out_loss/")]
    assert len(cells) > 1
    assert row["held_out_loss"] == pytest.approx(np.mean([row[c] for c in cells]))
    trained, state, about = load_trained(path)
    artifact = make_artifact(trained, encode(trained), state, about)
    assert artifact.provenance["best_step"] == 1
    unknown = dataclasses.replace(validation, suite="quickstrat")
    with pytest.raises(InputError, match=r"quickstrat.*quickstart"):
        train(of(tmp_path / "other", validation=unknown), "tiny")
