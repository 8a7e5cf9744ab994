"""What moves θ: rules of optax, clipping first, accumulation, frozen parts."""

from __future__ import annotations

import collections
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metatrain.estimators.pes import PES
from metatrain.frozen import keep_frozen
from metatrain.inner_training import Unrolled
from metatrain.outer import MetaTraining, ProblemGroup, signal_to_noise
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths

THETA = {"a": jnp.array([0.5, -2.0]), "b": {"c": jnp.array([[3.0, 1.0]])}}


def grads(seed):
    key = jax.random.key(seed)
    return jax.tree.map(lambda x: jax.random.normal(key, x.shape), THETA)


def run(transformation, num=5):
    state, theta = transformation.init(THETA), THETA
    update = jax.jit(transformation.update)
    for seed in range(num):
        updates, state = update(grads(seed), state, theta)
        theta = optax.apply_updates(theta, updates)
    return theta


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


CONSTANT = dict(learning_rate=0.1, warmup_steps=0, final_fraction=1.0, clip_norm=1e6)


def test_the_default_rule_is_adamw_bit_for_bit():
    outer = OuterOptimizer(**CONSTANT, b1=0.8, b2=0.95, weight_decay=0.3)
    schedule = optax.cosine_decay_schedule(0.1, 5, alpha=1.0)
    expected = optax.flatten(optax.adamw(schedule, 0.8, 0.95, weight_decay=0.3))
    assert_same(run(outer.build(5)), run(expected))


def test_any_scaling_of_optax_can_be_the_rule():
    outer = OuterOptimizer(**CONSTANT, rule="lion", b1=0.5, b2=0.9, weight_decay=0.2)
    expected = optax.flatten(optax.lion(0.1, 0.5, 0.9, weight_decay=0.2))
    assert_same(run(outer.build(5)), run(expected))
    settings = (("decay", 0.7), ("eps", 1e-3))
    outer = OuterOptimizer(**CONSTANT, rule="rms", settings=settings, weight_decay=0.0)
    rms = optax.scale_by_rms(decay=0.7, eps=1e-3)
    assert_same(run(outer.build(5)), run(optax.chain(rms, optax.scale(-0.1))))
    outer = OuterOptimizer(**CONSTANT, rule="sgd", weight_decay=0.0)
    assert_same(run(outer.build(5)), run(optax.sgd(0.1)))


def test_elements_are_clipped_before_the_norm():
    fields = CONSTANT | dict(clip_norm=2.0)
    outer = OuterOptimizer(**fields, rule="sgd", clip_value=1.5, weight_decay=0.0)
    grad = {"a": jnp.array([100.0, -1.0]), "b": {"c": jnp.array([[-7.0, 0.5]])}}
    transformation = outer.build(5)
    updates, _ = transformation.update(grad, transformation.init(THETA), THETA)
    clipped = np.array([1.5, -1.0, -1.5, 0.5])
    expected = -0.1 * clipped * 2.0 / np.linalg.norm(clipped)
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(updates)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_accumulation_moves_by_the_mean_and_only_then():
    outer = OuterOptimizer(
        **CONSTANT, rule="sgd", weight_decay=0.0, clip_value=0.4, accumulate=3
    )
    transformation = outer.accumulated(6)
    state, theta = transformation.init(THETA), THETA
    for seed in range(3):
        assert_same(theta, THETA)
        updates, state = transformation.update(grads(seed), state, theta)
        theta = optax.apply_updates(theta, updates)
    # Clipping sees the mean: single gradients go far beyond 0.4.
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *(grads(s) for s in range(3)))
    expected = jax.tree.map(lambda t, g: t - 0.1 * np.clip(g, -0.4, 0.4), THETA, mean)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-6), theta, expected)


def test_the_schedule_counts_moves_of_theta():
    fields = dict(learning_rate=1.0, warmup_steps=0, final_fraction=0.0, clip_norm=1e6)
    outer = OuterOptimizer(**fields, rule="sgd", weight_decay=0.0, accumulate=2)
    transformation, ones = outer.accumulated(8), {"a": jnp.ones(1)}
    state, moved = transformation.init(ones), []
    for _ in range(8):
        updates, state = transformation.update(ones, state, ones)
        moved.append(-float(updates["a"][0]))
    cosine = [(1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)]
    np.testing.assert_allclose(moved[::2], 0.0)
    np.testing.assert_allclose(moved[1::2], cosine, rtol=1e-5)


def test_frozen_paths_reach_below_the_top():
    still = keep_frozen(THETA, ("b/c",))
    assert float(jnp.abs(still["b"]["c"]).max()) == 0.0
    assert_same(still["a"], THETA["a"])
    assert_same(keep_frozen(THETA, ("b",)), still)
    for part, message in (("b/d", "'b/d'.*'d'.*has c"), ("a/x", "'a/x'.*has none")):
        with pytest.raises(ValueError, match=message):
            keep_frozen(THETA, (part,))


def test_signal_to_noise_is_that_of_the_mean_and_one_for_noise_alone():
    terms = {"a": jnp.array([[1.0, 2.0], [3.0, -2.0], [2.0, 3.0]])}
    mean = jax.tree.map(lambda x: x.mean(0), terms)
    flat = np.asarray(terms["a"], np.float64)
    covariance_of_mean = np.cov(flat.T) / len(flat)
    expected = np.sum(flat.mean(0) ** 2) / np.trace(covariance_of_mean)
    assert float(signal_to_noise(terms, mean)) == pytest.approx(expected, rel=1e-5)
    # Twins are one: they say nothing more of the noise.
    twice = {"a": jnp.repeat(terms["a"], 2, axis=0)}
    assert float(signal_to_noise(twice, mean, 2)) == pytest.approx(expected, rel=1e-5)

    noise = jax.random.normal(jax.random.key(0), (500, 16, 40))
    found = np.asarray(jax.vmap(lambda x: signal_to_noise(x, x.mean(0)))(noise))
    # The ratio is F-distributed with 40 and 15 · 40 degrees of freedom.
    standard_error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - 600 / 598) < 4 * standard_error


class Episode(NamedTuple):
    step: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class Slope:
    """Losses that are linear in θ: the meta-gradient is the slope itself, if finite."""

    slope: float
    spoiled_at: int = -1  # inner step whose loss is not finite

    def sample(self, key):
        return ()

    def start(self, theta, variant, key, length):
        return Episode(jnp.int32(0), jnp.asarray(length, jnp.int32))

    def unroll(self, theta, episode, variant, dataset, key, *, num_steps, **_):
        steps = episode.step + jnp.arange(num_steps)
        losses = jnp.full(num_steps, self.slope) * theta["x"].sum()
        losses = jnp.where(steps == self.spoiled_at, jnp.inf, losses)
        episode = episode._replace(step=episode.step + num_steps)
        return Unrolled(episode, losses, losses, jnp.array(False))


@dataclasses.dataclass(frozen=True)
class Point:
    """θ is a point; nothing is optimized with it."""

    def init(self, key):
        return {"x": jnp.ones(2), "y": jnp.ones(3)}

    def learned_decays(self, theta):
        return {"momentum": theta["y"] / 4.0, "average": theta["x"][0]}


ES = PES(
    num_pairs=2, chunk=2, truncation=1, lengths=EpisodeLengths(4, 4, staggered=False)
)


def training(outer, *slopes, **fields):
    groups = tuple(
        ProblemGroup(f"slope_{i}", s if isinstance(s, Slope) else Slope(s))
        for i, s in enumerate(slopes)
    )
    return MetaTraining(groups, Point(), ES, outer, num_steps=20, **fields)


def test_normalized_groups_weigh_the_same_whatever_their_losses():
    fields = CONSTANT | dict(rule="sgd", weight_decay=0.0)
    moved = {}
    for kind in ("plain", "normalized"):
        outer = OuterOptimizer(**fields, group_gradients=kind)
        meta = training(outer, 1e-3, 1e3)
        first = meta.init()
        start = np.asarray(first.theta["x"])
        state, metrics = meta.step(first, {0: None, 1: None})
        moved[kind] = np.asarray(state.theta["x"]) - start
        assert metrics["grad_norm/slope_1"] > 1e4 * metrics["grad_norm/slope_0"]
    assert np.linalg.norm(moved["plain"]) > 10.0
    assert 0.0 < np.linalg.norm(moved["normalized"]) <= 0.1 + 1e-6


def test_a_step_that_is_not_finite_is_skipped_whole_and_the_next_goes_on():
    outer = OuterOptimizer(**CONSTANT, accumulate=2)
    spoiled = Slope(1.0, spoiled_at=1)
    meta = training(outer, spoiled)
    state, skipped = meta.init(), []
    for _ in range(4):
        before = jax.device_get((state.theta, state.outer_opt_state))
        state, metrics = meta.step(state, {0: None})
        after = jax.device_get((state.theta, state.outer_opt_state))
        skipped.append(float(metrics["skipped"]))
        if skipped[-1]:
            assert_same(before, after)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


def test_frozen_fields_learned_decays_and_a_given_start():
    outer = OuterOptimizer(**CONSTANT, frozen=("y",))
    meta = training(outer, 1.0)
    given = {"x": jnp.array([2.0, 5.0]), "y": jnp.array([1.0, 2.0, 3.0])}
    state, metrics = meta.step(meta.init(given), {0: None})
    assert_same(state.theta["y"], given["y"])
    assert not np.array_equal(state.theta["x"], given["x"])
    found = [float(metrics[f"decay/momentum_{k}"]) for k in range(3)]
    np.testing.assert_allclose(found, [0.25, 0.5, 0.75])
    assert metrics["decay/average"] == state.theta["x"][0]


def test_another_theta_is_refused():
    meta = training(OuterOptimizer(**CONSTANT), 1.0)
    given = {"x": jnp.zeros(2), "y": jnp.zeros(3)}
    for leaf, value, message in (
        ("x", jnp.zeros(3), r"theta\['x'\] is float32\[3\] and must be float32\[2\]"),
        ("x", np.ones(2, int), r"theta\['x'\] is int32\[2\] and must be float32\[2\]"),
        ("x", "abc", r"theta\['x'\] is a str and must be float32\[2\]"),
        ("x", np.float32([0.0, np.nan]), r"theta\['x'\] is not finite"),
        ("z", jnp.zeros(2), r"theta\['z'\] is float32\[2\] and must be absent"),
        ("y", None, r"theta\['y'\] is absent and must be float32\[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            meta.init({**given, leaf: value})
    # Another tree with the same leaves is the same θ, noise and all.
    turned = collections.OrderedDict(y=given["y"], x=given["x"])
    again = meta.init(turned)
    assert jax.tree.structure(again.theta) == jax.tree.structure(given)
    assert_same(again.theta, meta.init(given).theta)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "adamm"}, "rule = 'adamm' must be sgd or one of .*adam"),
        ({"rule": "schedule"}, "rule = 'schedule' must be sgd or one of"),
        ({"rule": "polyak"}, "rule = 'polyak' must be sgd or one of"),
        ({"rule": "rprop"}, "rule = 'rprop' cannot be made of numbers"),
        ({"settings": (("epsilon", 1.0),)}, "adam takes no 'epsilon'.* eps"),
        (
            {"settings": (("eps", float("nan")),)},
            r"settings\[0\]\[1\] = nan must be a number",
        ),
        ({"accumulate": 0}, "accumulate = 0"),
        ({"max_skipped": 1.5}, "max_skipped = 1.5"),
        ({"clip_value": -1.0}, "clip_value = -1.0"),
        ({"group_gradients": "mean"}, "group_gradients = 'mean'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        OuterOptimizer(**fields)
