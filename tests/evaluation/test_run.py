"""Evaluation runs: figures, pairing by seed, divergence."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from evaluation import run
from lopt import SGD, Adam, SmallFC
from metatrain.keys import stream
from tasks import MLP, ImageClassification

TASK = ImageClassification(MLP((8,), base_width=8), batch_size=16)
RATE = {"learning_rate": jnp.float32(0.02)}


@pytest.fixture(scope="module")
def adam():
    return run.evaluate(TASK, Adam(), RATE, 8, (0, 1, 2))


def test_curve_is_that_of_a_plain_optax_loop(adam):
    key = stream(jax.random.key(1), "evaluation")
    dataset = TASK.load_data()
    params = TASK.init(stream(key, "init"))
    draws = TASK.draw(dataset, stream(stream(key, "unroll"), "batches"), "train", 8)
    optimizer = optax.adam(0.02)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, draw):
        batch = TASK.batch(dataset, draw, "train")
        grad = jax.value_and_grad(TASK.loss, has_aux=True)
        (loss, _), grads = grad(params, key, batch)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for t in range(8):
        draw = jax.tree.map(lambda x, t=t: x[t], draws)
        params, state, loss = step(params, state, draw)
        losses.append(float(loss))
    np.testing.assert_allclose(adam.curve[1], losses, rtol=2e-5)
    test_loss, aux = TASK.loss(params, key, TASK.whole(dataset, "test"))
    np.testing.assert_allclose(adam.test_loss[1], test_loss, rtol=2e-5)
    np.testing.assert_allclose(adam.test_accuracy[1], aux["accuracy"], rtol=1e-6)
    assert adam.test_loss[1] != adam.valid_loss[1]


def test_summary_figures_are_those_of_the_curve(adam):
    np.testing.assert_allclose(adam.mean_loss, adam.curve.mean(1), rtol=1e-6)
    np.testing.assert_allclose(adam.final_loss, adam.curve.mean(1), rtol=1e-6)
    assert not adam.diverged.any()
    assert not adam.capped_steps.any()
    assert (adam.seconds > 0).all()


def test_every_optimizer_starts_at_chance_on_the_same_parameters(adam):
    lopt = SmallFC(hidden_size=4, hidden_layers=1)
    learned = run.evaluate(TASK, lopt, lopt.init(jax.random.key(0)), 8, (0, 1, 2))
    np.testing.assert_allclose(adam.curve[:, 0], math.log(10), rtol=1e-6)
    np.testing.assert_array_equal(learned.curve[:, 0], adam.curve[:, 0])
    assert (learned.curve[:, 1] != adam.curve[:, 1]).all()


def test_seeds_share_batches_between_optimizers_and_horizons(tasks):
    adam = run.evaluate(tasks.echo, Adam(), RATE, 6, (0, 1))
    sgd = run.evaluate(tasks.echo, SGD(), RATE, 9, (0, 1))
    np.testing.assert_array_equal(adam.curve, sgd.curve[:, :6])
    assert (adam.curve[0] != adam.curve[1]).all()


def test_digit_batches_do_not_depend_on_the_horizon():
    dataset = TASK.load_data()
    key = jax.random.key(3)
    short = TASK.draw(dataset, key, "train", 5)
    long = TASK.draw(dataset, key, "train", 11)
    np.testing.assert_array_equal(short.rows, long.rows[:5])


def test_a_seed_run_alone_or_in_a_list_is_the_same_run(adam):
    alone = run.evaluate(TASK, Adam(), RATE, 8, (2,))
    for name in ("curve", "valid_loss", "test_accuracy"):
        one, listed = getattr(alone, name)[0], getattr(adam, name)[2]
        np.testing.assert_allclose(one, listed, rtol=1e-4)


def test_pairs_of_rate_and_seed_beyond_one_chunk(tasks):
    num = run.chunk_size(tasks.quadratic) + 2
    rates = np.linspace(0.1, 2.0, num).astype(np.float32)
    result = run.evaluate_each(
        tasks.quadratic, SGD(), {"learning_rate": jnp.asarray(rates)}, 3, [0] * num
    )
    shrink = 1 - rates[:, None] / 4
    expected = 0.5 * shrink ** (2 * np.arange(3))
    np.testing.assert_allclose(result.curve, expected, rtol=1e-5)
    assert result.seconds.shape == (num,)


def test_a_run_that_is_not_finite_counts_as_the_cap():
    rate = {"learning_rate": jnp.float32(jnp.inf)}
    result = run.evaluate(TASK, Adam(), rate, 8, (0, 1, 2))
    cap = 1.5 * math.log(10)
    assert result.diverged.all()
    assert np.isnan(result.valid_loss).all() and np.isnan(result.test_loss).all()
    assert not np.isfinite(result.curve).all()
    assert (result.capped_steps == 7).all()
    assert np.isfinite(result.mean_loss).all()
    losses = np.where(np.isnan(result.curve), cap, np.minimum(result.curve, cap))
    np.testing.assert_allclose(result.mean_loss, losses.mean(1), rtol=1e-5)


def test_held_out_losses_are_not_capped(tasks):
    # Each step multiplies x by 1 − 12/4.
    rate = {"learning_rate": jnp.float32(12.0)}
    result = run.evaluate(tasks.quadratic, SGD(), rate, 3, (0,))
    assert result.valid_loss[0] == result.test_loss[0] == 0.5 * 4.0**3
    np.testing.assert_allclose(result.mean_loss, (0.5 + 1.5 + 1.5) / 3, rtol=1e-6)
    assert result.capped_steps[0] == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_held_out_loss_that_is_not_finite_is_reported_as_divergence(tasks, value):
    class Broken(type(tasks.quadratic)):
        def whole(self, dataset, split):
            return jnp.float32(value if split == "test" else 0.0)

        def loss(self, params, key, batch):
            return super().loss(params, key, batch)[0] + 0.0 * batch, {}

    result = run.evaluate(Broken(), SGD(), RATE, 3, (0,))
    assert np.isnan(result.test_loss[0]) and result.diverged[0]
    assert np.isfinite(result.valid_loss[0]) and not result.capped_steps[0]


def test_the_time_of_runs_that_fill_up_a_chunk_is_not_billed(tasks, monkeypatch):
    ticks = itertools.count()  # each program takes one second
    monkeypatch.setattr(run.time, "perf_counter", lambda: float(next(ticks)))
    size = run.chunk_size(tasks.quadratic)
    theta = {"learning_rate": jnp.full(size + 1, 0.1)}
    seeds = range(size + 1)
    result = run.evaluate_each(tasks.quadratic, SGD(), theta, 2, seeds)
    np.testing.assert_allclose(result.seconds, 1.0 / size)


def test_a_spike_is_capped_and_counted_but_is_no_divergence(tasks):
    result = run.evaluate(tasks.spike, SGD(), RATE, 30, (0,))
    assert result.curve[0, 2] == 100.0
    assert result.capped_steps[0] == 1
    assert not result.diverged[0]
    np.testing.assert_allclose(result.mean_loss, (29 * 0.5 + 1.5) / 30, rtol=1e-6)
    np.testing.assert_allclose(result.final_loss, 0.5, rtol=1e-6)
    assert np.isnan(result.test_accuracy[0])


def test_validation_figure_is_taken_after_the_update(tasks):
    task, dataset = tasks.quadratic, tasks.quadratic.load_data()
    rate = {"learning_rate": 2.0}
    held_out, train = run.mean_loss(task, SGD(), rate, 4, range(3), dataset)
    losses = 0.5 * 0.25 ** np.arange(5)
    np.testing.assert_allclose(train, losses[:4].mean(), rtol=1e-6)
    np.testing.assert_allclose(held_out, losses[1:].mean(), rtol=1e-6)
    with pytest.raises(ValueError, match="not held out"):
        run.mean_loss(task, SGD(), rate, 4, (0,), dataset, split="train")


def test_validation_figure_reads_the_split_it_names(adam):
    dataset = TASK.load_data()
    broken = dataset.outer_valid.labels * 0 + 9
    broken = dataset._replace(outer_valid=dataset.outer_valid._replace(labels=broken))
    one, train = run.mean_loss(TASK, Adam(), RATE, 8, range(3), dataset)
    two, same = run.mean_loss(TASK, Adam(), RATE, 8, range(3), broken)
    assert one != two
    assert train == same
    expected = adam.mean_loss.mean() / math.log(10)
    np.testing.assert_allclose(train, expected, rtol=1e-5)


def test_a_large_split_is_evaluated_in_pieces(monkeypatch):
    task = ImageClassification(MLP((8,)))
    batch = task.whole(task.load_data(), "test")
    leaves, structure = jax.tree.flatten(task.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = structure.unflatten(
        [rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    )
    key = jax.random.key(2)
    want = jax.jit(task.loss)(params, key, batch)
    # 360 rows: 3 pieces and a rest; 3 pieces exactly; the whole; more than there are.
    for piece in (100, 120, 360, 500):
        monkeypatch.setattr(run, "PIECE", piece)
        got = jax.jit(functools.partial(run._loss_of_whole, task))(params, key, batch)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        np.testing.assert_allclose(got[1]["accuracy"], want[1]["accuracy"], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lopt": Adam}, "lopt = <class .* must be of type LearnedOptimizer"),
        ({"theta": {}}, r"theta\['learning_rate'\] is absent and must be float32\[\]"),
        ({"num_steps": 3.0}, r"num_steps = 3\.0 must be a whole number"),
    ],
)
def test_arguments_of_another_kind_are_named(change, message):
    given = dict(task=TASK, lopt=Adam(), theta=RATE, num_steps=8, seeds=(0,))
    with pytest.raises(ValueError, match=message):
        run.evaluate(**given | change)
