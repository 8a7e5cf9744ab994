"""Regression to a random teacher: what is learned, its unit, its splits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import ADAM_LIKE, STANDARD, Rules
from tasks.base import SPLITS, sample
from tasks.models.mlp import MLP
from tasks.regression import WHOLE, RandomTeacher
from tests.tasks import families
from tests.tasks.families import KEY

TASK = RandomTeacher(
    MLP((8, 8), base_width=8), MLP((12, 12)), num_inputs=5, num_targets=3, noise=0.3
)


@pytest.fixture(scope="module")
def data():
    return TASK.load_data()


@pytest.fixture(scope="module")
def batches(data):
    """40 batches of 128 examples, as one: `[5120, ...]`."""
    draws = TASK.draw(data, KEY, "train", 40)
    batches = jax.jit(jax.vmap(lambda draw: TASK.batch(data, draw, "train")))(draws)
    return jax.tree.map(lambda x: np.float64(x).reshape(5120, -1), batches)


def network(params, x):
    """A network of rectified layers and a readout, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for i in range(len(params) - 1):
        layer = params[f"hidden_{i}"]
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x, params["readout"]


def test_targets_are_the_teacher_s_outputs_and_noise(data, batches):
    features, readout = network(data.params, batches.inputs)
    mult = 32 / 12  # of the teacher's readout, whose base is 32 units wide
    outputs = mult * features @ readout["kernel"] + readout["bias"]
    clean = (outputs - np.float64(data.mean)) / np.float64(data.std)
    noise = batches.targets - clean
    num = noise.size
    assert noise.std() == pytest.approx(0.3, abs=4.5 * 0.3 / math.sqrt(2 * num))
    assert abs(noise.mean()) < 4.5 * 0.3 / math.sqrt(num)
    assert np.abs(np.corrcoef(noise.T, clean.T) - np.eye(6))[
        :3, 3:
    ].max() < 4.5 / math.sqrt(5120)
    assert TASK.lowest_loss == pytest.approx(0.09)
    inputs = batches.inputs
    assert np.abs(inputs.mean(0)).max() < 4.5 / math.sqrt(5120)
    assert np.abs(inputs.std(0) - 1).max() < 4.5 / math.sqrt(2 * 5120)
    assert all(np.asarray(x).any() for x in jax.tree.leaves(data.params))
    # A straight line is not what the teacher draws.
    line = np.c_[inputs, np.ones(5120)]
    rest = clean - line @ np.linalg.lstsq(line, clean, rcond=None)[0]
    assert (rest.var(0) > 0.05).all()


def test_the_unit_is_the_loss_of_the_best_constant(batches):
    squares = (batches.targets - batches.targets.mean(0)) ** 2
    # Targets are standardized by 16384 other inputs.
    error = squares.mean(1).std() * math.sqrt(1 / 5120 + 1 / 16384)
    assert TASK.loss_at_chance == pytest.approx(squares.mean(), abs=4.5 * error)
    assert TASK.loss_at_chance == 1 + 0.3**2 and error < 0.03
    mean = batches.targets.mean(0)
    assert np.abs(mean).max() < 4.5 * math.sqrt(1.09 * (1 / 5120 + 1 / 16384))


def test_nothing_comes_twice_and_splits_are_apart(data):
    draws = {split: TASK.draw(data, KEY, split, 2) for split in SPLITS}
    keys = np.concatenate([jax.random.key_data(d) for d in draws.values()])
    assert len(np.unique(keys, axis=0)) == 8
    again = jax.random.key_data(TASK.draw(data, KEY, "test", 5))
    np.testing.assert_array_equal(again[:2], jax.random.key_data(draws["test"]))

    def wholes(data):
        return [TASK.whole(data, split).inputs for split in SPLITS]

    rows = np.concatenate(jax.jit(wholes)(data))
    assert rows.shape == (4 * WHOLE, 5) and len(np.unique(rows, axis=0)) == 4 * WHOLE


def test_every_parameter_of_the_student_has_its_role():
    assert families.described(TASK.at_width(20).specs()) == {
        "hidden_0/kernel": ("pixels -> width", "input", (5, 20), (5, 8), 1.0),
        "hidden_0/bias": ("-> width", "vector", (20,), (8,), 1.0),
        "hidden_1/kernel": ("width -> width", "hidden", (20, 20), (8, 8), 2.5),
        "hidden_1/bias": ("-> width", "vector", (20,), (8,), 1.0),
        "readout/kernel": ("width -> classes", "output", (20, 3), (8, 3), 2.5),
        "readout/bias": ("-> classes", "vector", (3,), (3,), 1.0),
    }


@pytest.mark.parametrize(("rules", "mult"), [(ADAM_LIKE, 0.5), (STANDARD, 1.0)])
def test_the_loss_is_the_squared_error_of_the_student(data, rules, mult):
    task = TASK.at_width(16).with_rules(rules)
    batch = sample(task, data, KEY)
    zero = jax.jit(task.init)(KEY)
    away = families.randomized(task.model, (5,), 3)
    program = jax.jit(task.loss)
    targets = np.float64(batch.targets)
    start = float(program(zero, KEY, batch)[0])
    assert start == pytest.approx((targets**2).mean(), rel=1e-6)
    features, readout = network(away, np.float64(batch.inputs))
    outputs = mult * features @ readout["kernel"] + readout["bias"]
    want = ((outputs - targets) ** 2).mean()
    assert float(program(away, KEY, batch)[0]) == pytest.approx(want, rel=1e-5)
    assert abs(want - start) > 0.1


def test_at_the_base_shape_all_parametrizations_are_one_bit_for_bit(data):
    batch = sample(TASK, data, KEY)
    away = families.randomized(TASK.model, (5,), 3)
    # Equal programs compute equal bits.
    programs, wide = set(), set()
    for rules in Rules:
        for width, texts in ((8, programs), (16, wide)):
            task = TASK.at_width(width).with_rules(rules)
            params = families.randomized(task.model, (5,), 3)
            program = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
            texts.add(program.lower(params, KEY, batch).as_text())
    assert len(programs) == 1 and len(wide) == 2
    gradient, _ = jax.jit(jax.grad(TASK.loss, has_aux=True))(away, KEY, batch)
    assert all(np.asarray(x).any() for x in jax.tree.leaves(gradient))


def test_a_seed_is_a_teacher_and_the_student_is_not_part_of_it(data):
    same = dataclasses.replace(TASK, model=MLP((4,)), batch_size=2).load_data()
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, same, data)))
    other = dataclasses.replace(TASK, seed=1)
    traced = jax.jit(lambda x: x * other.load_data().std)(jnp.ones(3))
    np.testing.assert_array_equal(traced, other.load_data().std)
    assert not np.array_equal(other.load_data().std, data.std)
    assert (TASK.width, TASK.depth) == (8, 2)
    assert TASK.at_depth(3).model.widths == (8, 8, 8)
    assert TASK.at_depth(3).teacher == TASK.teacher


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_inputs", 0, "num_inputs = 0 must be a positive whole number"),
        ("num_targets", 1.0, "num_targets = 1.0 must be a whole number"),
        ("batch_size", -3, "batch_size = -3 must be a positive whole number"),
        ("noise", -0.1, "noise = -0.1 must lie in [0, 1e6]"),
        ("seed", "a", "seed = 'a' must be a whole number"),
    ],
)
def test_bad_fields_are_refused(field, value, message):
    with pytest.raises(ValueError) as info:
        RandomTeacher(**{field: value})
    assert message == str(info.value)
