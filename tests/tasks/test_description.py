"""Descriptions of tasks in tables, and messages about missing data."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from configuration import identity
from tasks import (
    MLP,
    VAE,
    AutoEncoder,
    Autoencoding,
    BytePairs,
    Digits,
    ImageClassification,
    LanguageModelling,
    NoisyQuadratic,
    Quadratic,
    RandomTeacher,
    Recurrent,
    Signals,
    StandardLibrary,
    TFDSImages,
    TFDSText,
    Valley,
)
from tasks import description as d
from tasks.base import sample
from tasks.data.resized import Resized
from tasks.regression import Teacher

LM = LanguageModelling(Recurrent("gru", width=8), length=4, batch_size=3)
TEACHER = RandomTeacher(MLP((4,)), teacher=MLP((4,)), num_inputs=5, num_targets=2)


@pytest.mark.parametrize(
    ("task", "family", "unit", "data", "resolution"),
    [
        (ImageClassification(), "MLP", "nats", "Digits", "8×8×1"),
        (ImageClassification(MLP(), Signals()), "MLP", "nats", "Signals", "1×40×1"),
        (
            ImageClassification(MLP(), Resized(Digits(), 16)),
            "MLP",
            "nats",
            "Digits",
            "16×16×1",
        ),
        (LM, "Recurrent", "nats per token", "StandardLibrary", "4 of 256 tokens"),
        (Autoencoding(), "AutoEncoder", "squared deviations", "Digits", "8×8×1"),
        (Autoencoding(VAE()), "VAE", "nats per pixel", "Digits", "8×8×1"),
        (
            Autoencoding(AutoEncoder(), reconstruction="bernoulli"),
            "AutoEncoder",
            "nats per pixel",
            "Digits",
            "8×8×1",
        ),
        (TEACHER, "MLP", "squared deviations", "made in-graph", "5 inputs"),
        (Valley(), "Valley", "units of the height", "none", "16 coordinates"),
    ],
)
def test_names_and_units(task, family, unit, data, resolution):
    assert task.family == family
    assert task.unit == unit
    assert task.data_name == data
    assert task.resolution == resolution
    assert d.undescribed(task) is None and d.missing_data(task) is None


@pytest.mark.parametrize(
    "task",
    [
        ImageClassification(MLP((4,)), Signals(), batch_size=5),
        LM,
        Autoencoding(AutoEncoder(width=8, base_width=8), batch_size=6),
        TEACHER,
        Quadratic(),
        NoisyQuadratic(batch_size=2),
        Valley(),
    ],
    ids=lambda task: type(task).__name__,
)
def test_the_shapes_of_a_batch_are_those_of_a_real_one(task):
    if task is TEACHER:  # making it takes seconds
        network = task.teacher.init(jax.random.key(0), (5,), 2)
        dataset = Teacher(network, jnp.zeros(2), jnp.ones(2))
    else:
        dataset = task.load_data()
    real = jax.eval_shape(lambda key: sample(task, dataset, key), jax.random.key(0))
    shapes = task.batch_shapes()
    assert jax.tree.structure(shapes) == jax.tree.structure(real)
    for found, wanted in zip(
        jax.tree.leaves(shapes), jax.tree.leaves(real), strict=True
    ):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)


def test_data_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("METATRAIN_DATA_DIR", "/nowhere")
    images = ImageClassification(MLP(), TFDSImages("no_such_images"))
    text = LanguageModelling(Recurrent(), TFDSText("no_such_text"), length=4)
    assert "/nowhere" in d.missing_data(images)
    assert "/nowhere" in d.missing_data(text)
    # The shapes of text are known all the same: the tokenizer says them.
    assert "/nowhere" in d.undescribed(images)
    assert d.undescribed(text) is None
    assert text.batch_shapes().inputs.shape == (32, 4)
    with pytest.raises(ValueError, match="/nowhere"):
        d.data_identity(images)


def test_names_of_prepared_data():
    grey = TFDSImages("cifar10", size=8, grey=True)
    assert ImageClassification(MLP(), grey).data_name == "cifar10, grey"
    text = LanguageModelling(Recurrent(), TFDSText("lm1b", BytePairs(300)), length=4)
    assert text.data_name == "lm1b"
    assert text.resolution == "4 of 300 tokens"


def test_contents_of_one_name_are_told_apart(data_dir):
    data_dir("mnist"), data_dir("cifar10_subset")
    small, large = (TFDSImages("mnist", size=size) for size in (8, None))
    found = [d.data_identity(ImageClassification(MLP(), x)) for x in (small, large)]
    assert found[0] == found[1] | {"size": 8}
    other = ImageClassification(MLP(), TFDSImages("cifar10_subset"))
    assert d.data_identity(other)["content"] != found[0]["content"]
    assert d.data_identity(LM)["content"] == StandardLibrary().content()
    digits = d.data_identity(ImageClassification())
    assert digits["class"] == "tasks.data.embedded.Digits"
    assert digits["content"] == identity.of_arrays(Digits().load())


def test_a_vae_with_squared_errors_starts_at_its_loss_at_chance_in_that_unit():
    # Squared deviations and a divergence in nats are one sum, at the start all error.
    task = Autoencoding(VAE())
    plain = dataclasses.replace(task, model=AutoEncoder())
    assert math.isclose(task.loss_at_chance, plain.loss_at_chance)
