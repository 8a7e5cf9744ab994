"""Foreign tasks in the outer and the inner loop: trained on, evaluated, diverged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.run import evaluate
from lopt.baselines import SGD, Adam
from lopt.learned.small_fc import SmallFC
from metatrain.estimators.pes import PES
from metatrain.inner_training import InnerTraining
from metatrain.objective import Objective
from metatrain.outer import MetaTraining
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from tasks.custom.learned_optimization import adapt
from tests.tasks.custom.foreign import Averaging, Classifier, Returning, Scales

KEY = jax.random.key(1)


def test_three_outer_steps_on_an_adapted_task():
    task = adapt(Averaging(), num_batches=5, num_held_out=2, loss_at_chance=np.log(3.0))
    lopt = SmallFC(hidden_size=3, step_mult=0.01)
    es = PES(num_pairs=2, chunk=2, truncation=4, lengths=EpisodeLengths(8, 8))
    training = MetaTraining.on(task, lopt, es, OuterOptimizer(), num_steps=3)
    state, losses = training.init(), []
    before = jax.device_get(state.theta)
    for _ in range(3):
        state, metrics = training.step(state, {0: task.load_data()})
        losses.append(float(metrics["meta_loss"]))
        assert float(metrics["grad_norm"]) > 0 and float(metrics["skipped"]) == 0
    assert int(state.step) == 3 and all(0.1 < loss < 1.5 for loss in losses)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.theta)
    assert all(jax.tree.leaves(moved))


def test_an_adapted_task_is_evaluated_on_its_held_out_batches():
    original = Classifier()
    task = adapt(original, num_batches=5, num_held_out=2, loss_at_chance=np.log(3.0))
    lopt = SGD(1e-9)  # so small that the parameters stay
    runs = evaluate(task, lopt, lopt.init(KEY), num_steps=30, seeds=[4])
    assert len(set(np.round(runs.curve[0], 6))) == 5
    # Batches recur, so every loss of the run is one of the five.
    assert runs.mean_loss[0] == pytest.approx(
        np.mean(np.minimum(runs.curve, 1.5 * np.log(3)))
    )
    assert 0 < runs.test_accuracy[0] * 8 <= 8
    assert runs.test_accuracy[0] * 8 == pytest.approx(round(runs.test_accuracy[0] * 8))


def test_a_loss_that_is_nan_counts_as_the_cap():
    task = adapt(Returning(lambda x: jnp.nan * jnp.sum(x)), loss_at_chance=2.0)
    adam = Adam()
    problem = InnerTraining(task, adam, Objective(cap=1.25))
    theta = adam.init(KEY)
    variant = problem.sample(KEY)
    episode = problem.start(theta, variant, KEY, jnp.int32(4))
    unrolled = problem.unroll(theta, episode, variant, (), KEY, num_steps=4)
    losses, diverged = unrolled.losses, unrolled.diverged
    np.testing.assert_array_equal(losses, np.full(4, 1.25, np.float32))
    assert bool(diverged)


def test_every_pair_trains_on_a_configuration_of_its_own():
    family = adapt(Scales())
    problem = InnerTraining(family, SGD(1e-3), Objective())
    key = jax.random.key(5)
    variants = [problem.sample(k) for k in jax.random.split(key, 3)]
    scales = [float(variant.config["log_scale"]) for variant in variants]
    assert len(set(scales)) == 3
    for variant in variants:
        episode = problem.start(SGD(1e-3).init(KEY), variant, KEY, jnp.int32(4))
        want = family.init_with(variant.config, KEY)
        np.testing.assert_array_equal(episode.params["x"], want["x"])
        theta = SGD(1e-3).init(KEY)
        unrolled = problem.unroll(theta, episode, variant, (), KEY, num_steps=1)
        loss, _ = family.loss_with(variant.config, want, KEY, ())
        unit = family.loss_at_chance_over_configs()
        assert float(unrolled.losses[0]) == pytest.approx(
            min(float(loss) / unit, 1.5), rel=1e-5
        )
