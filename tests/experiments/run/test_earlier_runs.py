"""A run directory of schema 1 is read, and its run goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from experiments import command_line
from experiments.command_line import InputError
from experiments.presets.configs import QUICKSTART, TrainConfig, Validation
from experiments.presets.estimators import ESTIMATORS, earlier_form, migrated
from experiments.presets.serialization import decode, digest_of, encode
from experiments.run import run_directory
from experiments.run.training_state import load_trained
from experiments.train import train
from lopt.learned.small_fc import SmallFC
from metatrain.estimators.pes import PES
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE

EARLIER = Path(__file__).parents[2] / "golden/run_schema_1"
# The command line that made it, and what was then the only choice.
PRESET = "quickstart"
THEN = dataclasses.replace(
    QUICKSTART,
    lopt=SmallFC(hidden_size=8, step_mult=0.01, output_scale=0.0, rules=ADAM_LIKE),
    estimator=PES(sigma=0.03, lengths=EpisodeLengths(50, 600)),
    outer=OuterOptimizer(learning_rate=1e-2, warmup_steps=50, final_fraction=0.1),
    num_steps=1200,
    seed=0,
    validation=Validation(num_steps=400, figure="train"),
)
PRESETS = {PRESET: ("the quickstart of that time", lambda: THEN)}
FLAGS = {
    "lopt.factored-axes": "tensor",
    "task.model.widths": 4,
    "task.model.base-width": 4,
    "task.batch-size": 8,
    "lopt.hidden-size": 3,
    "estimator.num-pairs": 2,
    "estimator.truncation": 4,
    "estimator.lengths.minimum": 4,
    "estimator.lengths.maximum": 12,
    "validation.num-steps": 5,
    "validation.every": 10,
    "num-steps": 20,
    "run.checkpoint-every": 10,
    "run.keep-checkpoints": 1,
    "run.devices": 1,
    "run.directory": "runs/tiny",
}


def parsed(changed=()):
    """The configuration of that command line, with some of its flags changed."""
    flags = FLAGS | dict(changed)
    words = [word for name, x in flags.items() for word in (f"--{name}", str(x))]
    return command_line.choose_preset(PRESETS, "train", [PRESET, *words])[1]


def stored():
    """Its configuration as it was written."""
    return json.loads((EARLIER / "config.json").read_text())


def test_its_configuration_is_that_of_its_command_line_and_so_is_its_identity():
    config = decode(TrainConfig, run_directory.read_config(EARLIER))
    wanted = parsed()
    assert config == wanted and isinstance(config.estimator, PES)
    origin = EARLIER / "checkpoints/step_00000020/origin.json"
    assert json.loads(origin.read_text())["run"] == digest_of(encode(wanted))
    assert earlier_form(encode(wanted)["estimator"]) == stored()["estimator"]


def test_its_theta_is_read():
    config, state, _ = load_trained(EARLIER)
    assert int(state.outer.step) == config.num_steps == 20


@pytest.mark.slow
def test_the_same_command_with_more_steps_goes_on(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(EARLIER, copy)
    before = (copy / "metrics.jsonl").read_text()
    train(parsed({"run.directory": copy, "num-steps": 22}), PRESET)
    after = (copy / "metrics.jsonl").read_text()
    assert after.startswith(before)
    rows = [json.loads(line) for line in after.splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 23))
    assert all(row["update_norm"] > 0 for row in rows)
    assert int(load_trained(copy)[1].outer.step) == 22


@pytest.mark.parametrize("name", ["pes", "noise_reuse_es", "truncated_es", "full_es"])
def test_every_estimator_is_read_in_the_form_of_schema_1(name):
    estimator = ESTIMATORS[name](QUICKSTART.estimator)
    today = encode(estimator)
    earlier = earlier_form(today)
    assert earlier["kind"] == "EvolutionStrategy" and "controls" not in earlier
    assert migrated(earlier) == today and migrated(today) == today


def test_a_combination_that_no_estimator_has_is_refused():
    earlier = stored()["estimator"] | {"refresh": 3, "credit": "window"}
    with pytest.raises(InputError, match="refresh = 3 with credit = 'window' is no"):
        migrated(earlier)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refresh": "episode", "credit": "window"}, "refresh = 'episode' with credit"),
        ({"refresh": "episode", "credit": None}, "refresh = 'episode' with credit"),
        ({"controls": {"orthogonal": True}}, "controls = .* is not a field of Evolut"),
        ({"refresh": True}, "refresh = True must be a whole number or 'episode'"),
        ({"refresh": 1.0, "credit": "window"}, "refresh = 1.0 must be a whole number"),
        ({"kind": "PES", "refresh": True}, "refresh = True must be a whole number"),
    ],
)
def test_an_estimator_that_no_version_wrote_is_refused(changes, message):
    with pytest.raises(InputError, match=message) as error:
        migrated(stored()["estimator"] | changes)
    assert "\n" not in str(error.value)


def test_a_stored_refresh_is_kept_where_the_kind_is_absent():
    earlier = stored()["estimator"] | {"refresh": 3}
    del earlier["kind"]
    assert (migrated(earlier)["kind"], migrated(earlier)["refresh"]) == ("PES", 3)
    with pytest.raises(InputError, match="refresh = 3 with credit = 'fresh' is no"):
        migrated(earlier | {"credit": "fresh"})


def test_a_default_that_has_changed_since_is_named_with_the_stored_value(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(EARLIER, copy)
    flags = {k: v for k, v in FLAGS.items() if k != "lopt.factored-axes"}
    words = [word for name, x in flags.items() for word in (f"--{name}", str(x))]
    config = command_line.choose_preset(PRESETS, "train", [PRESET, *words])[1]
    message = r"\(lopt\.factored_axes: tensor -> matrix\); repeat its fields"
    with run_directory.RunDirectory(copy) as directory:
        with pytest.raises(InputError, match=message):
            directory.claim(encode(config))
        directory.claim(encode(parsed()))  # with --lopt.factored-axes tensor
