"""`--expert NAME`: what a preset makes of it, and what is stored of it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from experiments.command_line import InputError, choose_preset
from experiments.presets.configs import QUICKSTART, TrainConfig, presets
from experiments.presets.experts import EXPERTS, take_expert, with_expert
from experiments.presets.serialization import decode, encode
from lopt.baselines import SGD, Muon
from metatrain.expert import Expert


def test_a_named_expert_accompanies_half_of_a_preset_and_its_fields_can_be_changed():
    expert, rest = take_expert(["quickstart", "--expert", "sgdm", "--seed", "5"])
    assert expert == EXPERTS["sgdm"] and rest == ["quickstart", "--seed", "5"]
    changed = with_expert(presets(), expert)
    name, config = choose_preset(
        changed,
        "program",
        [*rest, "--expert.blend", "0.5", "--expert.optimizer.momentum", "0.8"],
    )
    assert name == "quickstart" and isinstance(config.expert.optimizer, SGD)
    assert config.expert == Expert(
        dataclasses.replace(EXPERTS["sgdm"], momentum=0.8),
        full_until=QUICKSTART.num_steps // 20,
        over_at=QUICKSTART.num_steps // 2,
        blend=0.5,
    )
    assert dataclasses.replace(config, expert=None, seed=QUICKSTART.seed) == QUICKSTART
    assert take_expert(["quickstart"]) == (None, ["quickstart"])


def test_an_expert_is_stored_with_the_run():
    expert = Expert(Muon(0.02), full_until=3, over_at=9, blend=0.5)
    config = dataclasses.replace(QUICKSTART, expert=expert)
    assert decode(TrainConfig, json.loads(json.dumps(encode(config)))) == config
    assert config.build().groups[0].problem.expert == expert
    assert QUICKSTART.build().groups[0].problem.expert is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expert"], "--expert needs a name: adamw, sgdm, muon"),
        (["--expert", "--seed"], "--expert needs a name"),
        (["--expert=lion"], "unknown expert --expert 'lion': known are adamw, "),
    ],
)
def test_a_wrong_name_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message):
        take_expert(arguments)
