"""Graded diagnosis: its loss, its unit, its start, and grades that are monotone."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import ADAM_LIKE, STANDARD
from tasks.base import sample
from tasks.data.images import Images, partition
from tasks.data.speckle import Speckle
from tasks.diagnosis import GradedDiagnosis, exceeds, grade, scores
from tasks.models.mlp import MLP
from tests.tasks import families
from tests.tasks.families import KEY

DATA = Speckle(size=8, num_train=60, num_test=20, images_per_patient=2)
TASK = GradedDiagnosis(MLP((6, 6), base_width=6), DATA, batch_size=32)


@pytest.fixture(scope="module")
def data():
    return TASK.load_data()


def by_hand(logits, labels):
    """Loss, accuracy and error in float64, one image and dichotomy at a time."""
    loss, errors = 0.0, []
    for row, label in zip(logits, labels, strict=True):
        for k, z in enumerate(row):
            probability = 1 / (1 + math.exp(-z))
            likelihood = probability if label > k else 1 - probability
            loss -= math.log(likelihood) / logits.size
        guess = 0
        while guess < len(row) and row[guess] > 0:
            guess += 1
        errors.append(abs(guess - label))
    return loss, np.mean(np.array(errors) == 0), np.mean(errors)


def network(params, x, mult):
    """Outputs of two rectified layers and a readout, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    for i in range(2):
        layer = params[f"hidden_{i}"]
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return mult * x @ params["readout"]["kernel"] + params["readout"]["bias"]


@pytest.mark.parametrize(("rules", "mult"), [(ADAM_LIKE, 0.5), (STANDARD, 1.0)])
def test_the_loss_is_the_mean_cross_entropy_of_the_dichotomies(data, rules, mult):
    task = TASK.at_width(12).with_rules(rules)
    batch = jax.jit(lambda data: sample(task, data, KEY))(data)
    params = families.randomized(task.model, (8, 8, 1), 3)
    labels = np.asarray(data.images.train.labels)
    above = np.array([(labels > k).mean() for k in range(3)])
    outputs = network(params, batch.images, mult)
    want = by_hand(outputs + np.log(above / (1 - above)), np.asarray(batch.labels))
    loss, aux = jax.jit(task.loss)(params, KEY, batch)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(want[0], rel=1e-5)
    assert float(aux["accuracy"]) == pytest.approx(want[1], rel=1e-6)
    assert float(aux["grade_error"]) == pytest.approx(want[2], rel=1e-6)
    assert 0 < want[1] < 1 and 1 - want[1] < want[2]  # some grades are off by two


def test_the_unit_is_the_loss_of_the_best_constant(data):
    labels = np.asarray(data.images.train.labels)
    constants = np.linspace(0, 1, 4001)[1:-1]
    least = []
    for k in range(3):
        above = (labels > k).mean()
        losses = -above * np.log(constants) - (1 - above) * np.log(1 - constants)
        least.append(losses.min())
    # On the grid a constant is at most half a step from the best one.
    slack = (1 / 8000) ** 2 / (0.1 * 0.9)
    assert np.mean(least) - slack < TASK.loss_at_chance <= np.mean(least) + 1e-12
    assert TASK.loss_at_chance < math.log(2)
    assert TASK.num_outputs == 3 and TASK.input_shape == (8, 8, 1)


def test_a_run_starts_at_chance(data):
    params = jax.jit(TASK.init)(KEY)
    whole = jax.jit(lambda data: TASK.whole(data, "train"))(data)
    loss, aux = jax.jit(TASK.loss)(params, KEY, whole)
    assert float(loss) == pytest.approx(TASK.loss_at_chance, rel=1e-6)
    # 60 % are above S0, 30 % above S1: the best constant grade is S1.
    labels = np.asarray(data.images.train.labels)
    assert float(aux["accuracy"]) == pytest.approx((labels == 1).mean())
    assert float(aux["grade_error"]) == pytest.approx(np.abs(labels - 1).mean())


def test_a_batch_is_graded_images_that_can_be_cut(data):
    batch = jax.jit(lambda data: sample(TASK, data, KEY, "test"))(data)
    assert {len(leaf) for leaf in jax.tree.leaves(batch)} == {32}
    labels = np.asarray(batch.labels)
    pixels = np.asarray(data.images.test.images, np.float32)
    pixels = (pixels - np.float32(data.images.mean)) / np.float32(data.images.std)
    for image, label in zip(np.asarray(batch.images)[:8], labels[:8], strict=True):
        (row,) = np.flatnonzero(np.isclose(pixels, image, atol=1e-5).all((1, 2, 3)))
        assert data.images.test.labels[row] == label
    targets = np.asarray(exceeds(batch.labels, 4))
    assert targets.shape == (32, 3) and targets.dtype == bool
    np.testing.assert_array_equal(targets.sum(1), labels)
    assert (targets[:, :-1] >= targets[:, 1:]).all()


def test_scores_and_grades_are_monotone():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 3)).astype(np.float32)
    claimed = np.asarray(scores(jnp.asarray(logits)))
    assert (np.diff(claimed) <= 0).all()
    np.testing.assert_array_equal(claimed, [np.minimum.accumulate(x) for x in logits])
    ordered = np.sort(logits)[:, ::-1]
    np.testing.assert_array_equal(scores(jnp.asarray(ordered)), ordered)
    grades = np.asarray(grade(jnp.asarray(logits)))
    # The grade is the number of dichotomies that are claimed, and which those are.
    for k in range(3):
        np.testing.assert_array_equal(grades > k, claimed[:, k] > 0)
    assert np.bincount(grades).min() > 20 and ((logits > 0).sum(1) > grades).any()
    for k in range(3):
        raised = logits + 2 * np.eye(3, dtype=np.float32)[k]
        assert (np.asarray(grade(jnp.asarray(raised))) >= grades).all()


def test_every_parameter_has_its_role():
    assert families.described(TASK.at_width(12).specs())["readout/kernel"] == (
        *("width -> classes", "output", (12, 3), (6, 3)),
        2.0,
    )


@dataclasses.dataclass(frozen=True)
class Healthy(Images):
    """Nobody has the highest grade."""

    image_shape = (2, 2, 1)
    num_classes = 3

    def load(self):
        pixels = np.arange(160, dtype=np.uint8).reshape(40, 2, 2, 1)
        return partition(pixels, np.arange(40) % 2, (20, 25, 30))


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match="batch_size = 0 must be a positive"):
        dataclasses.replace(TASK, batch_size=0)
    with pytest.raises(ValueError, match="data = 3 must be of type Images"):
        dataclasses.replace(TASK, data=3)
    task = dataclasses.replace(TASK, data=Healthy())
    with pytest.raises(ValueError, match=r"data = Healthy\(\): no .* grade 2"):
        _ = task.loss_at_chance
