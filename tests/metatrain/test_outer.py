"""Meta-training on a tiny real task: isolation, shared batches, resets, outer AdamW."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.baselines import Adam
from lopt.learned.small_fc import SmallFC
from metatrain.estimators.pes import PES
from metatrain.inner import Precisions
from metatrain.inner_training import InnerTraining, Unrolled
from metatrain.objective import Objective
from metatrain.outer import MetaTraining, ProblemGroup
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE
from tasks.classification import ImageClassification
from tasks.models.mlp import MLP
from tests.metatrain.toy import estimated

TASK = ImageClassification(MLP(widths=(4,), base_width=4), batch_size=8)
LOPT = SmallFC(hidden_size=3, step_mult=0.01, rules=ADAM_LIKE)
ES = PES(
    num_pairs=3, chunk=3, truncation=4, lengths=EpisodeLengths(8, 16, staggered=False)
)
PROBLEM = InnerTraining(TASK, LOPT, Objective())
TRAINING = MetaTraining(
    (ProblemGroup("task", PROBLEM),), LOPT, ES, OuterOptimizer(), num_steps=20
)


class Frozen(SmallFC):
    """Its first layer is left alone."""

    @property
    def frozen(self):
        return ("layer_0",)


@pytest.mark.slow
def test_frozen_parts_of_theta_do_not_move(dataset):
    lopt = Frozen(hidden_size=3, step_mult=0.01, rules=ADAM_LIKE)
    outer = OuterOptimizer(warmup_steps=0, weight_decay=0.1)
    es = dataclasses.replace(ES, num_pairs=1, chunk=1, truncation=2)
    training = MetaTraining.on(TASK, lopt, es, outer, num_steps=4)
    start = jax.tree.map(np.asarray, training.init().theta)
    state, _ = training.step(training.init(), {0: dataset})
    for name, part in state.theta.items():
        same = jax.tree.map(lambda a, b: bool((a == b).all()), part, start[name])
        assert jax.tree.all(same) == (name == "layer_0"), name


@pytest.fixture(scope="module")
def dataset():
    return TASK.load_data()


@pytest.fixture(scope="module")
def estimate(dataset):
    """One compiled window of the estimator, shared by the tests."""
    return jax.jit(
        lambda theta, state, key: estimated(ES, PROBLEM, theta, state, dataset, key)
    )


@pytest.fixture(scope="module")
def begun(estimate):
    """θ and the pairs after their first window."""
    state = TRAINING.init()
    _, pairs = estimate(state.theta, state.estimator_states[0], jax.random.key(7))
    return state.theta, pairs


def leaves_equal(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -3e38])
def test_what_overflows_leaves_the_other_pairs_bit_unchanged(estimate, begun, value):
    theta, pairs = begun
    key = jax.random.key(3)
    clean, clean_pairs = estimate(theta, pairs, key)
    params = jax.tree.map(lambda x: x.at[1, 0].set(value), pairs.episodes.params)
    poisoned = pairs._replace(episodes=pairs.episodes._replace(params=params))
    dirty, dirty_pairs = estimate(theta, poisoned, key)
    for index in (0, 2):
        pick = lambda tree, i=index: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
        assert leaves_equal(pick(clean.terms), pick(dirty.terms))
        assert leaves_equal(pick(clean_pairs), pick(dirty_pairs))
    assert not leaves_equal(clean.terms, dirty.terms)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(dirty.terms))
    assert float(dirty.metrics["diverged"]) == pytest.approx(1 / 6)
    assert float(clean.metrics["diverged"]) == 0.0


def test_a_diverged_member_is_replaced_at_its_scheduled_end(estimate, begun):
    theta, pairs = begun
    params = jax.tree.map(lambda x: x.at[1, 0].set(jnp.nan), pairs.episodes.params)
    pairs = pairs._replace(episodes=pairs.episodes._replace(params=params))
    ended = False
    for window in range(6):
        finished = int(pairs.episodes.step[1, 0]) >= int(pairs.episodes.length[1, 0])
        estimated, pairs = estimate(theta, pairs, jax.random.key(window))
        ended = ended or finished
        diverged = float(estimated.metrics["diverged"]) > 0
        assert diverged != ended, f"window {window}"
    assert ended


def test_members_share_initialization_and_batches(dataset, estimate):
    state = TRAINING.init()
    # θ = 0 with vanishing noise: both members of a pair are the same optimizer.
    theta = jax.tree.map(lambda x: x, state.theta)
    quiet = dataclasses.replace(ES, sigma=1e-18)
    key = jax.random.key(2)
    _, pairs = jax.jit(
        lambda theta, state, key: estimated(quiet, PROBLEM, theta, state, dataset, key)
    )(theta, state.estimator_states[0], key)
    params = pairs.episodes.params["hidden_0"]["kernel"]
    np.testing.assert_array_equal(params[:, 0], params[:, 1])
    assert not np.array_equal(params[0, 0], params[1, 0])


def test_episodes_reset_to_the_beginning(dataset, estimate, begun):
    theta, pairs = begun
    for window in range(8):
        before = np.asarray(pairs.episodes.step[:, 0])
        length = np.asarray(pairs.episodes.length[:, 0])
        _, pairs = estimate(theta, pairs, jax.random.key(window))
        expected = np.where(before >= length, 0, before) + ES.truncation
        np.testing.assert_array_equal(pairs.episodes.step[:, 0], expected)
        np.testing.assert_array_equal(pairs.episodes.step[:, 1], expected)


def test_the_meta_gradient_is_clipped_before_adamw():
    outer = OuterOptimizer(learning_rate=1e-2, warmup_steps=0, clip_norm=1.0)
    theta = {"a": jnp.zeros(2)}
    small, spike = {"a": jnp.array([0.6, 0.0])}, {"a": jnp.array([0.0, 1e6])}

    def run(grads):
        transformation = outer.build(num_steps=100)
        state, current = transformation.init(theta), theta
        for grad in grads:
            updates, state = transformation.update(grad, state, current)
            current = optax.apply_updates(current, updates)
        return np.asarray(current["a"])

    # The spike counts as norm 1: the memory of the small gradients survives it.
    clipped = run([small, spike, small])
    unit = run([small, {"a": jnp.array([0.0, 1.0])}, small])
    np.testing.assert_allclose(clipped, unit, rtol=1e-5)


def test_learning_rate_warms_up_and_decays_by_a_cosine():
    outer = OuterOptimizer(
        learning_rate=1.0, warmup_steps=4, final_fraction=0.1, weight_decay=0.0
    )
    transformation = outer.build(num_steps=14)
    theta = {"a": jnp.zeros(1)}
    state, sizes = transformation.init(theta), []
    for _ in range(15):
        updates, state = transformation.update({"a": jnp.ones(1)}, state, theta)
        sizes.append(-float(updates["a"][0]))
    cosine = [0.1 + 0.9 * (1 + np.cos(np.pi * i / 10)) / 2 for i in range(11)]
    np.testing.assert_allclose(sizes[:4], [0.2, 0.4, 0.6, 0.8], rtol=1e-4)
    np.testing.assert_allclose(sizes[4:], cosine, rtol=1e-4)


@pytest.mark.slow
def test_training_is_reproducible_and_advances(dataset):
    def run():
        state = TRAINING.init()
        rows = []
        for _ in range(3):
            state, metrics = TRAINING.step(state, {0: dataset})
            rows.append({name: float(value) for name, value in metrics.items()})
        return state, rows

    (first, first_rows), (second, second_rows) = run(), run()
    assert leaves_equal(first, second)
    assert first_rows == second_rows
    assert int(first.step) == 3
    assert not leaves_equal(first.theta, TRAINING.init().theta)
    assert all(row["grad_norm"] > 0 for row in first_rows)


class Episode(NamedTuple):
    step: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class Broken:
    """A problem whose losses are so large that no gradient is finite."""

    def sample(self, key):
        return ()

    def start(self, theta, variant, key, length):
        return Episode(jnp.int32(0), jnp.asarray(length, jnp.int32))

    def unroll(self, theta, episode, variant, dataset, key, *, num_steps, **_):
        losses = jnp.full(num_steps, 1e37) * theta["learning_rate"]
        episode = episode._replace(step=episode.step + num_steps)
        return Unrolled(episode, losses, losses, jnp.array(True))


def test_a_step_that_would_spoil_theta_is_skipped_and_counted():
    groups = (ProblemGroup("broken", Broken()),)
    training = MetaTraining(groups, Adam(), ES, OuterOptimizer(), num_steps=5)
    state = training.init()
    theta, memory = jax.device_get((state.theta, state.outer_opt_state))
    state, metrics = training.step(state, {0: None})
    assert leaves_equal(theta, state.theta)
    assert leaves_equal(memory, state.outer_opt_state)
    assert float(metrics["skipped"]) == 1.0
    assert int(state.step) == 1


@pytest.mark.slow
def test_held_out_objective_uses_other_batches(dataset):
    problem = InnerTraining(TASK, LOPT, Objective(split="inner_valid"))
    theta = LOPT.init(jax.random.key(0))
    losses = {}
    for name, chosen in (("train", PROBLEM), ("inner_valid", problem)):
        variant = chosen.sample(jax.random.key(0))
        episode = chosen.start(theta, variant, jax.random.key(1), 8)
        losses[name] = chosen.unroll(
            theta, episode, variant, dataset, jax.random.key(2), num_steps=3
        ).losses
    # Before the first update every loss is at chance; after it none need be.
    assert float(losses["train"][0]) == pytest.approx(1.0, abs=1e-6)
    assert float(losses["inner_valid"][0]) != pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0"),
        ({"warmup_steps": -1}, "warmup_steps = -1"),
        ({"b2": 1.0}, "b2 = 1.0"),
        ({"final_fraction": 2.0}, "final_fraction = 2.0"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        OuterOptimizer(**fields)


def test_only_the_model_computes_in_bfloat16(dataset):
    low = dataclasses.replace(PROBLEM, precision=Precisions("bfloat16"))
    theta, products = LOPT.init(jax.random.key(0)), {}
    for problem in (PROBLEM, low):
        variant = problem.sample(jax.random.key(0))
        episode = problem.start(theta, variant, jax.random.key(1), jnp.int32(8))

        def window(episode, problem=problem, variant=variant):
            return problem.unroll(
                theta, episode, variant, dataset, jax.random.key(2), num_steps=2
            )

        kept = jax.eval_shape(window, episode).episode
        assert jax.tree.map(jnp.result_type, kept) == jax.tree.map(
            jnp.result_type, episode
        )
        text = str(jax.make_jaxpr(window)(episode))
        products[problem.precision.model] = {
            line.split(":")[1].split("[")[0]
            for line in text.splitlines()
            if "dot_general" in line
        }
    assert products["float32"] == {"f32"}
    assert products["bfloat16"] == {"f32", "bf16"}
    with pytest.raises(ValueError, match="model = 'float16' must be"):
        Precisions("float16")


@pytest.mark.slow
def test_features_in_bfloat16_change_the_meta_gradient_a_little(
    dataset, estimate, begun
):
    theta, pairs = begun
    key, low = (
        jax.random.key(3),
        dataclasses.replace(PROBLEM, precision=Precisions(features="bfloat16")),
    )
    want, _ = estimate(theta, pairs, key)
    got, after = jax.jit(
        lambda theta, state, key: estimated(ES, low, theta, state, dataset, key)
    )(theta, pairs, key)
    like = jax.tree.map(lambda x: x.dtype, (theta, pairs))
    assert jax.tree.map(lambda x: x.dtype, (got.grad, after)) == like
    norm = optax.tree.norm(want.grad)
    change = optax.tree.norm(jax.tree.map(jnp.subtract, got.grad, want.grad))
    assert 0 < float(change) < 0.02 * float(norm)
    with pytest.raises(ValueError, match="features = 'float16' must be"):
        Precisions(features="float16")
