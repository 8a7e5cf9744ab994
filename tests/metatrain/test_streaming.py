"""Data on the host: the same batches, bit for bit, and so the same training."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation import run
from lopt.baselines import Adam
from lopt.learned.small_fc import SmallFC
from metatrain.estimators.pes import PES
from metatrain.inner_training import InnerTraining
from metatrain.objective import Objective
from metatrain.outer import MetaTraining, ProblemGroup
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.streaming import Feed, HostDataset, ahead, load
from metatrain.truncation import EpisodeLengths
from metatrain.unroll import make_plan
from parametrization.rules import ADAM_LIKE
from tasks.autoencoding import Autoencoding
from tasks.classification import ImageClassification
from tasks.data.augmentation import Augmentation
from tasks.data.text import Text, to_device
from tasks.language_modelling import LanguageModelling
from tasks.models.autoencoder import AutoEncoder
from tasks.models.mlp import MLP
from tasks.models.recurrent import Recurrent
from tasks.synthetic.quadratics import Quadratic
from tasks.variation import UNVARYING, Variation


class Letters(Text):
    vocab_size = 16

    def load(self):
        rng = np.random.default_rng(0)
        splits = ("train", "inner_valid", "outer_valid", "test")
        return to_device({s: rng.integers(0, 16, 300, np.uint8) for s in splits})


IMAGES = ImageClassification(
    MLP((4,), base_width=4), batch_size=8, augmentation=Augmentation(1, flip=True)
)
TEXT = LanguageModelling(Recurrent(width=4, base_width=4), Letters(), 6, 4)
CODES = Autoencoding(AutoEncoder(width=4, base_width=4), batch_size=8)
TASKS = {"images": IMAGES, "text": TEXT, "codes": CODES}
LOPT = SmallFC(hidden_size=3, step_mult=0.01, rules=ADAM_LIKE)
ES = PES(num_pairs=4, chunk=2, truncation=5, lengths=EpisodeLengths(5, 10))


def leaves_equal(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", TASKS)
def test_batches_of_a_window_are_those_of_the_device(name):
    task = TASKS[name]
    data, host = task.load_data(), HostDataset(task)
    keys = jax.random.split(jax.random.key(1), 3)
    window = host.window(task, host.plan(task, keys, 4))
    for pair in range(3):
        plan = make_plan(task, data, keys[pair], 4)
        mine = jax.tree.map(lambda x, i=pair: x[i], window)
        streamed = task.with_rows(host.resident, mine.rows)
        for step in range(4):
            pick = lambda tree, t=step: jax.tree.map(lambda x: x[t], tree)  # noqa: E731
            want = task.batch(data, pick(plan.draws), "train")
            got = task.batch(streamed, pick(mine.draws), "train")
            assert leaves_equal(got, want)
            assert jax.random.key_data(plan.loss_keys[step]).tolist() == (
                jax.random.key_data(mine.loss_keys[step]).tolist()
            )
    rows = [x.size for x in jax.tree.leaves(task.resident(host.whole))]
    assert sum(rows) < sum(x.size for x in jax.tree.leaves(host.whole))


def training(task, variation=UNVARYING, split="train"):
    problem = InnerTraining(task, LOPT, Objective(split=split), variation)
    groups = (ProblemGroup("task", problem),)
    return MetaTraining(groups, LOPT, ES, OuterOptimizer(), num_steps=4)


def advance(meta, task, dataset, state=None, steps=range(4)):
    state = meta.init() if state is None else state
    rows = []
    with Feed(meta, [task], [dataset]) as feed:
        for step in steps:
            state, metrics = meta.step(state, feed.at(step))
            rows.append({name: float(x) for name, x in metrics.items()})
    return state, rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variation", "split"),
    [
        ("images", Variation(label_noise=(0.3, 0.3), batch_share=0.25), "train"),
        ("text", UNVARYING, "inner_valid"),
    ],
)
def test_meta_training_is_the_same_bits(name, variation, split):
    task = TASKS[name]
    meta = training(task, variation, split)
    resident, rows = advance(meta, task, load(task, stream=False))
    streamed, streamed_rows = advance(meta, task, load(task, stream=True))
    assert rows == streamed_rows
    assert leaves_equal(resident, streamed)
    # A run that is resumed is fed what it would have been.
    state, _ = advance(meta, task, load(task, stream=True), steps=range(2))
    state, _ = advance(meta, task, load(task, stream=True), state, range(2, 4))
    assert leaves_equal(state, streamed)


@pytest.mark.slow
def test_evaluation_is_the_same(monkeypatch):
    lopt = Adam(0.05)
    theta = lopt.init(jax.random.key(0))
    data, host = IMAGES.load_data(), HostDataset(IMAGES)
    # 8 images of 64 pixels and a label: windows of 3 steps, and one of 1.
    monkeypatch.setattr("evaluation.training.WINDOW_BYTES", 3 * 2 * 8 * (64 + 4))
    want = run.evaluate(IMAGES, lopt, theta, 7, (0, 1), data)
    got = run.evaluate(IMAGES, lopt, theta, 7, (0, 1), host)
    # The batches are the same bits; a loop over windows is another program than one
    # scan, and may round the last bit of a sum in another way.
    for field in ("curve", "mean_loss", "test_loss", "valid_accuracy"):
        np.testing.assert_allclose(getattr(got, field), getattr(want, field), rtol=1e-6)
    thetas = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), theta)
    want = run.evaluate_each(IMAGES, lopt, thetas, 7, (0, 1, 0), data)
    got = run.evaluate_each(IMAGES, lopt, thetas, 7, (0, 1, 0), host)
    np.testing.assert_allclose(got.curve, want.curve, rtol=1e-5)
    losses = [run.mean_loss(IMAGES, lopt, theta, 7, (0, 1), d) for d in (data, host)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_nothing_is_compiled_while_the_clock_runs(monkeypatch):
    task = dataclasses.replace(IMAGES, batch_size=5)  # no other test has compiled it
    loss, traces, read = type(task).loss, [], []

    def traced(self, *args):
        traces.append(self)
        return loss(self, *args)

    def clock():
        read.append(len(traces))
        return 0.0

    monkeypatch.setattr(type(task), "loss", traced)
    monkeypatch.setattr("evaluation.run.time.perf_counter", clock)
    # Windows of 2, 2 and 1 steps.
    monkeypatch.setattr("evaluation.training.WINDOW_BYTES", 2 * 2 * 5 * (64 + 4))
    lopt = Adam(0.05)
    theta = lopt.init(jax.random.key(0))
    run.evaluate(task, lopt, theta, 5, (0, 1), HostDataset(task))
    begin, end = read
    assert begin == end > 0


def test_what_has_no_rows_lies_on_the_device():
    task = Quadratic(dimension=3)
    with pytest.raises(ValueError, match="a Quadratic has no rows of data"):
        HostDataset(task)
    assert not isinstance(load(task, stream=True), HostDataset)
    assert isinstance(load(IMAGES, stream=True), HostDataset)
    assert not isinstance(load(IMAGES, stream=False), HostDataset)


def test_windows_are_fetched_one_ahead():
    made, gate = [], threading.Event()

    def make(index):
        made.append(index)
        gate.set()
        return index

    stream = ahead(make, 3)
    assert made == []
    assert next(stream) == 0
    gate.wait(5)
    out = [0]
    for index in stream:
        assert max(made) <= index + 1
        out.append(index)
    assert out == [0, 1, 2] and made == [0, 1, 2]
    assert list(ahead(make, 0)) == []


def test_an_error_while_fetching_reaches_the_caller():
    def make(index):
        if index == 1:
            raise OSError("the disk is gone")
        return index

    with pytest.raises(OSError, match="the disk is gone"):
        list(ahead(make, 3))
    meta = training(IMAGES)
    broken = HostDataset(IMAGES)
    broken.whole = dataclasses.replace  # not a dataset
    with (
        pytest.raises((AttributeError, TypeError)),
        Feed(meta, [IMAGES], [broken]) as feed,
    ):
        feed.at(0)
