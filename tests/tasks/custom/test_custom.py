"""Tasks from functions: the documented example, data, roles, and what is refused."""

import dataclasses
import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tasks.custom.function_task
from evaluation.scaling.coordinate_check import coordinate_check
from lopt import Adam
from parametrization import ADAM_LIKE, STANDARD
from parametrization.rules import initializer
from tasks import FunctionTask, Splits
from tasks.base import SPLITS, sample
from tasks.custom.base import EveryBatch

KEY = jax.random.key(2)
ROWS = 37
DATA = {
    "x": np.arange(2.0 * ROWS).reshape(ROWS, 2),
    "y": np.arange(ROWS) % 5,
}


def init(key):
    return {"w": jax.random.normal(key, (2, 5)), "b": jnp.zeros(5)}


def loss(params, key, batch):
    logits = batch["x"] @ params["w"] / ROWS
    logits = logits + jnp.broadcast_to(params["b"], logits.shape)
    chosen = jnp.take_along_axis(logits, batch["y"][:, None], axis=1)[:, 0]
    right = jnp.argmax(logits, axis=1) == batch["y"]
    losses = jax.nn.logsumexp(logits, axis=1) - chosen
    return jnp.mean(losses), {"accuracy": right}


@pytest.fixture(scope="module")
def task():
    return FunctionTask(init, loss, DATA, batch_size=6)


def documented():
    """The Python blocks of the page on tasks of one's own."""
    root = Path(tasks.custom.function_task.__file__).parents[2]
    page = (root / "docs" / "howto" / "own_task.md").read_text()
    return re.findall(r"```python\n(.*?)\n```", page, re.S)


@pytest.fixture(scope="module")
def example():
    """The names that the first documented block defines."""
    names = {}
    longer = documented()[0].replace("100, seeds=[0, 1])", "300, seeds=[0, 1, 2])")
    assert "300" in longer  # the page trains for fewer steps than it takes to fit
    exec(longer, names)
    return names


def test_the_documented_example_is_ten_lines_and_trains(example):
    lines = documented()[0].splitlines()
    assert len([x for x in lines if x and not x.startswith(("import", "from"))]) == 10
    runs, chance = example["runs"], example["task"].loss_at_chance
    # Sums of 8 sines of N(0, 1), each of variance (1 − e⁻²)/2, and a zero readout.
    assert chance == pytest.approx(4 * (1 - math.exp(-2)), rel=0.05)
    assert not runs.diverged.any() and (runs.curve[:, 0] > 0.5 * chance).all()
    assert (runs.final_loss < 0.05 * chance).all()
    assert (runs.test_loss < 0.05 * chance).all()


@pytest.mark.slow
def test_the_documented_meta_training_runs(example):
    names = dict(example)
    exec(documented()[1], names)
    assert int(names["state"].step) == 3
    assert 0 < float(names["metrics"]["meta_loss"]) < 1.5
    before = names["lopt"].init(jax.random.key(0))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), names["theta"], before)
    assert any(jax.tree.leaves(moved))


def test_a_loss_of_which_nothing_is_known_is_not_in_nats(task):
    assert task.unit == "units of the task"
    named = dataclasses.replace(task, unit="nats")
    assert named.unit == "nats" and named != task
    # What was found for the task before it had a unit is found again.
    assert "unit" not in task.identified_by()


def test_four_disjoint_splits_of_a_fixed_permutation(task):
    dataset = task.load_data()
    rows = [np.asarray(dataset.split(split)["x"])[:, 0] // 2 for split in SPLITS]
    # ⌈37/5⌉ and twice ⌈37/10⌉ are held out.
    assert [len(x) for x in rows] == [21, 4, 4, 8]
    assert sorted(np.concatenate(rows)) == list(range(ROWS))
    order = np.random.RandomState(0).permutation(ROWS)
    np.testing.assert_array_equal(np.concatenate(rows), order)
    for split in SPLITS:
        x, y = (np.asarray(dataset.split(split)[n]) for n in ("x", "y"))
        np.testing.assert_array_equal(x[:, 0] // 2 % 5, y)
    assert dataset.train["x"].dtype == np.float32


def test_splits_are_taken_as_they_are():
    parts = [
        {"x": np.full((n, 2), n, np.float32), "y": np.full(n, 1)} for n in (5, 1, 2, 3)
    ]
    task = FunctionTask(init, loss, Splits(*parts), batch_size=2)
    for split, part in zip(SPLITS, parts, strict=True):
        np.testing.assert_array_equal(task.load_data().split(split)["x"], part["x"])


def test_what_the_caller_writes_later_is_not_seen():
    # Memory that JAX on a CPU would take as it is: aligned, and of the right type.
    raw = np.zeros(4 * 8 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    x = raw[start : start + 4 * 8].view(np.float32).reshape(8, 1)
    task = FunctionTask(
        lambda key: jnp.ones(1), lambda p, k, b: p[0], Splits(x, x, x, x)
    )
    x[:] = -1.0
    assert not np.asarray(task.load_data().train).any()


def test_a_batch_is_rows_of_its_split(task):
    dataset = task.load_data()
    for split in ("train", "test"):
        own = {tuple(row) for row in np.asarray(dataset.split(split)["x"])}
        draws = jax.jit(task.draw, static_argnums=(2, 3))(dataset, KEY, split, 40)
        assert draws.shape == (40, 6)
        batch = task.batch(dataset, draws, split)
        assert {tuple(row) for row in np.asarray(batch["x"]).reshape(-1, 2)} == own
        assert batch["y"].shape == (40, 6)


def test_loss_and_auxiliary_values_are_the_function_s(task):
    whole = task.whole(task.load_data(), "test")
    params = {
        "w": np.arange(10.0, dtype=np.float32).reshape(2, 5) % 7,
        "b": np.zeros(5),
    }
    value, aux = task.loss(params, KEY, whole)
    x, y = (np.asarray(whole[n], np.float64) for n in ("x", "y"))
    logits = x @ np.asarray(params["w"], np.float64) / ROWS
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(8), y.astype(int)]
    assert float(value) == pytest.approx(losses.mean(), rel=1e-6)
    assert float(aux["accuracy"]) == np.mean(logits.argmax(1) == y)


def normals(key):
    return jax.random.normal(key, (3,))


def distance(params, key, batch):
    return jnp.mean((params["x"] - batch) ** 2)


def three(key):
    return {"x": jnp.ones(3)}


def test_data_made_without_end_differ_by_key_and_split():
    task = FunctionTask(three, distance, normals)
    assert task.load_data() == ()
    batches = jax.jit(lambda key: [sample(task, (), key, s) for s in SPLITS])(KEY)
    assert len({float(batch[0]) for batch in batches}) == 4
    whole = task.whole((), "test")
    assert isinstance(whole, EveryBatch) and whole.batches.shape == (16, 3)
    expected = np.mean((1.0 - np.asarray(whole.batches, np.float64)) ** 2)
    assert float(task.loss(three(KEY), KEY, whole)[0]) == pytest.approx(
        expected, rel=1e-6
    )


def test_without_data_the_loss_has_the_key_alone():
    def noisy(params, key, batch):
        assert batch == ()
        return jnp.sum((params["x"] - jax.random.normal(key, (3,))) ** 2)

    task = FunctionTask(three, noisy)
    assert task.whole((), "test") == sample(task, (), KEY) == ()
    # Σ (1 − z)² of three: mean 6, variance 3 · 6.
    assert task.loss_at_chance == pytest.approx(6.0, abs=4.5 * math.sqrt(18) / 8)


def plain(key, width):
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (2, width)) / math.sqrt(2),
        "b1": jnp.zeros(width),
        "w2": jax.random.normal(second, (width, width)) / math.sqrt(width),
        "w3": jnp.zeros((width, 5)),
    }


def annotated(key, width):
    keys = jax.random.split(key)
    return {
        "w1": initializer("inputs -> width")(keys[0], (2, width)),
        "b1": initializer("-> width")(KEY, (width,)),
        "w2": initializer("width -> width")(keys[1], (width, width)),
        "w3": initializer("width -> outputs")(KEY, (width, 5)),
    }


BASE = 8


def layers(params, key, batch):
    first = batch["x"] @ params["w1"]
    first = first + jnp.broadcast_to(params["b1"], first.shape)
    second = jax.nn.relu(first) @ params["w2"]
    scale = BASE / len(params["b1"])
    return {"1": first, "2": second, "3": scale * (jax.nn.relu(second) @ params["w3"])}


def deep_loss(params, key, batch):
    hot = jax.nn.one_hot(batch["y"], 5)
    logits = layers(params, key, batch)["3"]
    return -jnp.mean(jnp.sum(hot * jax.nn.log_softmax(logits), axis=1))


def wide(init_fn, width, **fields):
    fields = {"width": width, "base_width": BASE, "layers_fn": layers, **fields}
    return FunctionTask(init_fn, deep_loss, DATA, batch_size=6, **fields)


@pytest.mark.parametrize("init_fn", [plain, annotated])
@pytest.mark.parametrize("width", [BASE, 4 * BASE])
def test_roles_are_known_at_every_width(init_fn, width):
    specs = wide(init_fn, BASE).at_width(width).specs()
    ratio = width / BASE
    found = {
        n: (s.kind, ADAM_LIKE.step_scale(s), s.fan_out_mult) for n, s in specs.items()
    }
    assert found == {
        "w1": ("input", 1.0, ratio),
        "b1": ("vector", 1.0, ratio),
        "w2": ("hidden", 1 / ratio, ratio),
        "w3": ("output", 1.0, 1.0),
    }
    assert specs["w3"].base_shape == (BASE, 5) and specs["w3"].shape == (width, 5)


@pytest.mark.slow
def test_an_annotated_task_passes_the_coordinate_check():
    task = wide(annotated, BASE)
    batch = sample(task, task.load_data(), KEY)
    adam = Adam(0.05, rules=ADAM_LIKE)
    check = coordinate_check(
        {width: task.at_width(width) for width in (32, 256)},
        lambda specs: adam.as_optax(adam.init(KEY), specs, num_steps=4),
        batch,
        seeds=(0, 1, 2, 3),
    )
    slopes = check.slopes()
    assert list(slopes) == ["1", "2", "3"]
    assert all(abs(slope) < 0.15 for slope in slopes.values()), slopes


def test_without_a_width_every_multiplier_is_one(task):
    specs = task.specs()
    assert (specs["w"].kind, specs["b"].kind) == ("fixed", "vector")
    assert (task.width, task.depth, task.with_rules(STANDARD)) == (None, None, task)
    for change, message in (
        (
            lambda: task.at_width(8),
            "^FunctionTask has no width to set to 8: give width",
        ),
        (lambda: task.at_depth(8), "^FunctionTask has no depth to set to 8"),
        (lambda: task.with_rules(ADAM_LIKE), "so ADAM_LIKE cannot be set"),
        (
            lambda: wide(plain, 8).with_rules(STANDARD),
            "STANDARD cannot be set from out",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            change()


def test_the_same_functions_and_data_are_compiled_once():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def compute(task):
        traced.append(task.width)
        return jnp.zeros(())

    task = wide(plain, BASE)
    for other in (task, task.at_width(16), task.at_width(16), task.at_width(BASE)):
        compute(other)
    assert traced == [8, 16]
    assert task.at_width(16) == task.at_width(16) != task
    # The same arrays once more are other data: a mean loss is kept per task.
    assert wide(plain, BASE) != task
    assert hash(wide(plain, BASE, chance=1.0)) != hash(task)


def test_loss_at_chance_is_given_or_the_mean_initial_loss():
    assert wide(plain, BASE, chance=2.0).loss_at_chance == 2.0
    zeros = FunctionTask(
        lambda key: {"w": jnp.zeros((2, 5)), "b": jnp.zeros(5)}, loss, DATA
    )
    assert zeros.loss_at_chance == pytest.approx(math.log(5), rel=1e-6)


def half_annotated(key):
    return {"a": initializer("-> width")(key, (3,)), "b": jnp.zeros(3)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FunctionTask(None, loss), "^init_fn = None must be a function"),
        (lambda: FunctionTask(three, 1.0), "^loss_fn = 1.0 must be a function"),
        (
            lambda: FunctionTask(init, loss, DATA, 0),
            "^batch_size = 0 must be a positive",
        ),
        (lambda: FunctionTask(init, loss, DATA, base_width=8), "= 8 needs a width"),
        (
            lambda: FunctionTask(plain, loss, DATA, width=-1),
            "^width = -1 must be a pos",
        ),
        (lambda: FunctionTask(init, loss, DATA, chance=0.0), "= 0.0 must be positive"),
        (
            lambda: FunctionTask(half_annotated, distance, normals),
            r"^parameter \['b'\] of shape \(3,\) has no role",
        ),
        (
            lambda: FunctionTask(three, lambda p, k, b: p["x"], name="mine"),
            r"^the loss of mine has shape \(3,\) and dtype float32; it must be one",
        ),
        *(
            (
                lambda leaf=leaf: FunctionTask(
                    lambda key: {"w": leaf}, lambda p, k, b: 1.0, name="mine"
                ),
                rf"^parameter \['w'\] of mine is {dtype}.*it must hold one or more",
            )
            for leaf, dtype in (
                (np.zeros(3, np.complex64), "complex64"),
                (np.zeros(3, np.int32), "int32"),
                (np.zeros((3, 0), np.float32), "float32"),
            )
        ),
        (
            lambda: FunctionTask(three, lambda p, k, b: (p["x"][0], p["x"])),
            "must be a dictionary of arrays",
        ),
        (
            lambda: FunctionTask(init, loss, {**DATA, "y": DATA["y"][:-1]}),
            r"^the arrays of data have \[36, 37\] rows; all must have the same number$",
        ),
        (
            lambda: FunctionTask(init, loss, {"x": DATA["x"][:3]}),
            "^data has 3 rows: four splits need 4 or more",
        ),
        (
            lambda: FunctionTask(init, loss, {**DATA, "names": ["a"] * ROWS}),
            r"^data\['names'\]\[0\] has dtype <U1 and shape \(\); it must be an array",
        ),
        (
            lambda: FunctionTask(three, distance, Splits(*[np.ones((2, 3))] * 3, [])),
            "^the arrays of test have no rows",
        ),
        (
            lambda: FunctionTask(
                three, distance, Splits(*[np.ones((2, 3))] * 3, np.ones((2, 4)))
            ),
            r"^rows of test are \['float64\[4\]'\], those of train \['float64\[3\]'\]",
        ),
        (
            lambda: FunctionTask(
                three, distance, Splits(*[np.ones((2, 3))] * 3, np.ones((0, 3)))
            ),
            "^split test has no row",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_error_of_the_user_s_own_function_is_not_hidden():
    def broken(params, key, batch):
        return params["nothing"]

    with pytest.raises(KeyError, match="nothing"):
        FunctionTask(three, broken)
