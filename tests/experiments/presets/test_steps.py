"""`--lopt.schedule`, `--lopt.weight-decay`, `--lopt.epsilons` and wrapped fields."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.command_line import InputError, choose_preset
from experiments.presets.configs import (
    QUICKSTART,
    TrainConfig,
    Validation,
    presets,
    with_optimizer,
    with_steps,
)
from experiments.presets.optimizers import OPTIMIZERS
from experiments.presets.serialization import decode, encode
from experiments.presets.steps import EPSILONS, SCHEDULES, Steps, take_steps
from lopt import SmallFC
from lopt.learned.learnable import LearnableAdam
from lopt.learned.velo import VeLO
from lopt.per_parameter.epsilons import WIDTH_SAFE
from lopt.per_parameter.scaled_mlp import VELO_EPSILONS
from lopt.release.registry import AnyLearned
from lopt.schedules import WarmupStableDecay
from lopt.wrappers import ScheduledSteps, WeightDecay
from metatrain.estimators.pes import PES
from metatrain.truncation import EpisodeLengths

RULE = SmallFC(hidden_size=4)


def chosen(words: str, lopt: AnyLearned = RULE) -> TrainConfig:
    """Returns the quickstart's configuration with another rule and these options."""
    steps, rest = take_steps(["quickstart", *words.split()])
    made = with_steps(with_optimizer(presets(), lopt), steps)
    return choose_preset(made, "program", rest)[1]


def test_schedule_and_decay_stand_in_the_usual_order_and_are_stored():
    config = chosen("--lopt.weight_decay=1e-3 --lopt.schedule cosine --seed 3")
    assert config.lopt == ScheduledSteps(WeightDecay(RULE, 1e-3), schedule="cosine")
    assert config.seed == 3
    assert decode(TrainConfig, encode(config)) == config


def test_what_is_there_already_is_changed_and_not_wrapped_again():
    there = ScheduledSteps(WeightDecay(RULE, 1e-2, ("input",)), 0.5, "cosine")
    named = "warmup_stable_decay --lopt.schedule.decay 0.4"
    config = chosen(f"--lopt.schedule {named} --lopt.weight-decay 0.1", there)
    inner = WeightDecay(RULE, 0.1, ("input",))
    assert config.lopt == ScheduledSteps(inner, 0.5, WarmupStableDecay(decay=0.4))


def test_wrappers_that_change_nothing_are_taken_away():
    there = ScheduledSteps(WeightDecay(RULE, 1e-2), schedule="cosine")
    assert chosen("--lopt.schedule constant --lopt.weight-decay 0", there).lopt == RULE
    scaled = ScheduledSteps(RULE, 0.5, "cosine")
    assert chosen("--lopt.schedule constant", scaled).lopt == ScheduledSteps(RULE, 0.5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_learned_optimizer_takes_schedule_and_decay(name: str):
    rule = OPTIMIZERS[name].make()
    for schedule in SCHEDULES.values():
        made = Steps(schedule, 0.5).of(rule)
        made = made.inner if schedule != "constant" else made
        assert made == WeightDecay(rule, 0.5)


def test_floors_have_names_and_reach_wrapped_rules():
    safe = chosen("--lopt.epsilons width_safe --lopt.weight-decay 0.1").lopt
    assert safe == WeightDecay(dataclasses.replace(RULE, epsilons=WIDTH_SAFE), 0.1)
    assert chosen("--lopt.epsilons paper", safe).lopt == WeightDecay(RULE, 0.1)
    # The paper's floors are those of each optimizer's own paper.
    velo = VeLO(epsilons=WIDTH_SAFE)
    assert Steps(epsilons="paper").of(velo).epsilons == VELO_EPSILONS
    assert set(EPSILONS) == {"paper", "width_safe"}
    with pytest.raises(InputError, match="LearnableAdam has no features with floors"):
        chosen("--lopt.epsilons paper", LearnableAdam())


def test_fields_of_wrapped_optimizers_need_no_path():
    there = ScheduledSteps(WeightDecay(RULE, 1e-2), schedule="cosine")
    wanted = dataclasses.replace(RULE, hidden_size=6)
    for word in ("hidden-size", "hidden_size", "inner.inner.hidden-size"):
        found = chosen(f"--lopt.{word} 6", there).lopt
        assert found == ScheduledSteps(WeightDecay(wanted, 1e-2), schedule="cosine")
    # The nearest field of the name is meant: here that of the schedule's wrapper.
    assert chosen("--lopt.learning-rate=0.5", there).lopt.learning_rate == 0.5
    nominal = WeightDecay(OPTIMIZERS["nominal"].make(), 1e-2)
    assert chosen("--lopt.precondition", nominal).lopt.inner.precondition is True
    assert chosen("--lopt.no-precondition", nominal).lopt == nominal
    with pytest.raises(InputError, match=r"--lopt\.hiden-size"):
        chosen("--lopt.hiden-size 6", there)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lopt.schedule cos", "unknown schedule --lopt.schedule 'cos': known are"),
        ("--lopt.schedule", "--lopt.schedule needs a name"),
        ("--lopt.weight-decay -1", "'-1' must be a number, at least 0"),
        ("--lopt.weight-decay nan", "'nan' must be a number, at least 0"),
        ("--lopt.weight-decay inf", "'inf' must be a number, at least 0"),
        ("--lopt.epsilons small", "unknown floors --lopt.epsilons 'small'"),
    ],
)
def test_wrong_values_are_refused(words: str, message: str):
    with pytest.raises(InputError, match=message):
        chosen(words)


def test_validation_runs_are_as_long_as_the_longest_episode():
    lengths = EpisodeLengths(50, 100, stages=((5, 50, 300),))
    config = dataclasses.replace(QUICKSTART, estimator=PES(lengths=lengths))
    assert config.validation_steps == 300
    short = dataclasses.replace(config, validation=Validation(num_steps=7))
    assert short.validation_steps == 7
    with pytest.raises(ValueError, match="num_steps = 0 must be a whole number"):
        Validation(num_steps=0)


def test_a_loss_that_no_theta_has_changed_chooses_none():
    one = Validation(num_steps=1, figure="train")
    with pytest.raises(ValueError, match="at least 2 steps, not 1"):
        dataclasses.replace(QUICKSTART, validation=one)
    held_out = dataclasses.replace(one, figure="held_out")
    assert dataclasses.replace(QUICKSTART, validation=held_out).validation_steps == 1
