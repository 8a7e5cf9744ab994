"""Frozen stages: trained once, the same every time, kept under what determines them."""

import dataclasses

import jax
import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.classification import ImageClassification
from tasks.data import cache
from tasks.generation import pretraining
from tasks.generation.pretraining import Pretraining
from tasks.models.mlp import MLP
from tasks.registry import FAMILIES

# What is trained does not matter here; this compiles soonest.
TASK = ImageClassification(MLP((4,), base_width=4), batch_size=16)
RECIPE = Pretraining(num_steps=30, learning_rate=0.03)


def trained(recipe, task=TASK):
    """As in a process that has trained nothing yet."""
    return pretraining._train.__wrapped__(recipe, task)


@pytest.mark.slow
def test_training_is_repeatable_and_kept_under_what_determines_it(monkeypatch):
    first = trained(RECIPE)
    loss = jax.jit(lambda p: TASK.loss(p, None, TASK.whole(TASK.load_data(), "test")))
    assert float(loss(first)[0]) < 0.95 * TASK.loss_at_chance
    arrays = pretraining._run(RECIPE, TASK, TASK.load_data())
    for path, value in arrays.items():
        layer, name = path.split(".")
        assert np.array_equal(first[layer][name], value)
    assert RECIPE.train(TASK) is RECIPE.train(TASK)

    def refuse(*_):
        raise AssertionError("it was trained again")

    monkeypatch.setattr(pretraining, "_run", refuse)
    again = trained(RECIPE)  # from the disk
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, again)))
    others = [
        (dataclasses.replace(RECIPE, seed=1), TASK),
        (dataclasses.replace(RECIPE, num_steps=31), TASK),
        (dataclasses.replace(RECIPE, learning_rate=0.02), TASK),
        (RECIPE, TASK.at_width(5)),
        (RECIPE, dataclasses.replace(TASK, batch_size=17)),
    ]
    for recipe, task in others:
        with pytest.raises(AssertionError, match="trained again"):
            trained(recipe, task)


def test_a_stage_that_diverged_is_refused_and_not_kept():
    recipe = Pretraining(num_steps=30, learning_rate=1e38)
    entries = set(cache.cache_dir().glob("*-pretrained-*/manifest.json"))
    with pytest.raises(ValueError, match=r"learning_rate = 1e\+38: .* not finite"):
        trained(recipe)
    assert set(cache.cache_dir().glob("*-pretrained-*/manifest.json")) == entries


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps = 0 must be a positive whole number"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0 must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate = nan must be a number"),
        ({"seed": -1}, "seed = -1 must be a whole number"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError) as info:
        Pretraining(**fields)
    assert message in str(info.value)


@pytest.mark.slow
def test_codes_of_a_trained_stage_b_tell_colours_apart():
    prior = FAMILIES["prior"].task()
    data = prior.load_data()

    def features(split):
        codes, labels = data.split(split)
        flat = np.asarray(codes, np.float64).reshape(len(codes), -1)
        return np.c_[flat, np.ones(len(flat))], np.asarray(labels) % 3

    x, colours = features("train")
    weights = np.linalg.lstsq(x, np.eye(3)[colours], rcond=None)[0]
    y, want = features("test")
    accuracy = np.mean((y @ weights).argmax(1) == want)
    assert accuracy > 0.6  # 1/3 is chance
    # The unit of the loss, of either stage, is what a guess of x gives at the start.
    assert 0.05 < prior.loss_at_chance < 0.2
    assert prior.at_width(64).loss_at_chance == prior.loss_at_chance
    assert 0.5 < prior.stage_b.loss_at_chance < 2
    latents = prior.stage_b.load_data().latents
    for split in SPLITS:
        assert len(latents.split(split).labels) == len(data.split(split).labels)
