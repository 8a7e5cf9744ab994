"""Struggling windows are noticed, their beginnings kept, and begun from again."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metatrain.estimators.noise_reuse_es import NoiseReuseES
from metatrain.estimators.pes import PES
from metatrain.inner_training import Unrolled
from metatrain.resume_buffer import ResumeBuffer
from metatrain.truncation import EpisodeLengths
from tests.metatrain.toy import estimated

WINDOW, PAIRS = 4, 2
observe = jax.jit(ResumeBuffer.observe, static_argnums=0)
renewed = jax.jit(ResumeBuffer.renewed, static_argnums=0)


class Run(NamedTuple):
    x: jax.Array
    step: jax.Array
    length: jax.Array


def runs(x, step, length=40):
    """A pair that stands at positions x `[2]`."""
    both = jnp.full(2, step, jnp.int32), jnp.full(2, length, jnp.int32)
    return Run(jnp.asarray(x, jnp.float32), *both)


def watch_of(buffer, variant=0.0):
    """Of one pair, when its episode has begun."""
    one = jax.tree.map(lambda x: x[None], runs([0.0, 0.0], 0))
    watch = buffer.unbegun(jnp.array([variant]), one)
    watch = jax.tree.map(lambda x: x[0], watch)
    given = jnp.float32(variant), runs([0.0, 0.0], 0)
    return renewed(buffer, watch, jax.random.key(0), jnp.array(True), given)[0]


def sums(losses, drift):
    """The definition, in float64: CUSUM of one member after each step."""
    s, last, found = 0.0, np.inf, []
    for loss in losses:
        s = max(0.0, s + loss - last - drift)
        last = loss
        found.append(s)
    return np.array(found)


@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_the_largest_sum_is_that_of_the_definition(drift):
    losses = np.random.RandomState(1).uniform(0.2, 1.2, (2, 12)).astype(np.float32)
    buffer = ResumeBuffer(slots=1, drift=drift)
    watch = watch_of(buffer)
    for begin in range(0, 12, 4):
        watch, _ = observe(
            buffer,
            watch,
            jnp.float32(0),
            runs([0, 0], begin),
            losses[:, begin : begin + 4],
        )
        expected = [sums(row[: begin + 4], drift) for row in losses]
        np.testing.assert_allclose(watch.cusum, [s[-1] for s in expected], atol=1e-5)
        np.testing.assert_allclose(watch.peak, [s.max() for s in expected], atol=1e-5)
    if drift == 0.0:  # the height above the smallest loss so far
        drawdown = losses - np.minimum.accumulate(losses, axis=1)
        np.testing.assert_allclose(watch.peak, drawdown.max(axis=1), atol=1e-5)


def test_the_beginning_of_a_struggling_window_is_kept_and_no_other():
    buffer = ResumeBuffer(slots=2, threshold=0.3)
    falling, rising = [0.9, 0.8, 0.7, 0.6], [0.6, 0.7, 1.1, 1.3]
    flat, higher = [1.3, 1.3, 1.3, 1.3], [1.3, 1.4, 1.5, 1.5]
    # Losses of both members, and whether the window struggles.
    windows = [
        (falling, falling, False),
        (falling, rising, True),  # .0 and .7, on average above the threshold
        (flat, flat, True),  # the first member jumps from .6 to 1.3
        (flat, flat, False),  # at a height, but rising no more
        (higher, flat, True),
    ]
    watch = watch_of(buffer)
    for index, (first, second, expected) in enumerate(windows):
        watch, struggles = observe(
            buffer,
            watch,
            jnp.float32(7.0),
            runs([10.0 + index, 20.0 + index], 4 * index),
            jnp.array([first, second]),
        )
        assert bool(struggles) == expected, index
    # Three were stored in two places: the newest took that of the oldest.
    assert int(watch.stored) == 3
    np.testing.assert_array_equal(watch.snapshots.episode.step, [16, 8])
    # In the last window the first member stands higher; in the third both do, at the
    # same height, and the first is taken.
    np.testing.assert_array_equal(watch.snapshots.episode.x, [14.0, 12.0])
    np.testing.assert_array_equal(watch.snapshots.variant, [7.0, 7.0])


@pytest.mark.parametrize(("x", "step", "kept"), [(1, 8, 1), (np.nan, 8, 0), (1, 12, 0)])
def test_lost_and_late_states_are_not_kept(x, step, kept):
    buffer = ResumeBuffer(slots=1, latest=10)
    rise = jnp.array([[0.1, 0.9], [0.1, 1.0]])
    watch, struggles = observe(
        buffer, watch_of(buffer), jnp.float32(0), runs([0.0, x], step), rise
    )
    assert bool(struggles) and int(watch.stored) == kept


def test_episodes_begin_from_what_is_stored_as_often_as_said_and_last_longer():
    buffer = ResumeBuffer(slots=3, fresh=0.3)
    watch, rise = watch_of(buffer), jnp.array([[0.1, 0.9], [0.1, 0.9]])
    for index in range(2):  # the third place stays empty
        watch, _ = observe(
            buffer,
            watch,
            jnp.float32(5 + index),
            runs([index + 1.0] * 2, 8),
            rise * (1 + index),
        )
    new = jnp.float32(9.0), runs([0.0, 0.0], 0, length=20)
    keys = jax.random.split(jax.random.key(4), 4000)
    after, (variant, episodes), warm = jax.jit(
        jax.vmap(lambda key: buffer.renewed(watch, key, jnp.array(True), new))
    )(keys)
    # 4 standard errors of a share of .7 in 4000.
    assert abs(warm.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / 4000)
    x, warm = np.asarray(episodes.x), np.asarray(warm)
    np.testing.assert_array_equal(x[:, 0], x[:, 1])
    shares = [np.mean(x[:, 0] == value) for value in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose(shares, [0.3, 0.35, 0.35], atol=0.035)
    np.testing.assert_array_equal(variant, np.choose(x[:, 0].astype(int), [9, 5, 6]))
    np.testing.assert_array_equal(episodes.step[:, 0], np.where(warm, 8, 0))
    np.testing.assert_array_equal(episodes.length[:, 0], np.where(warm, 28, 20))
    assert (after.peak == 0).all() and (after.last == jnp.inf).all()
    # Where nothing begins nothing changes.
    going_on = renewed(buffer, watch, keys[0], jnp.array(False), new)
    assert not bool(going_on[2])
    for a, b in zip(
        jax.tree.leaves(going_on[:2]), jax.tree.leaves((watch, new)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


class Ticking(NamedTuple):
    begun: jax.Array  # [] bits, which identify a beginning
    step: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class Cliff:
    """Losses fall until step 8 and rise from there; θ shifts them."""

    def sample(self, key):
        return jax.random.uniform(key)

    def start(self, theta, variant, key, length):
        begun = jax.random.uniform(key)
        return Ticking(begun, jnp.int32(0), jnp.asarray(length, jnp.int32))

    def unroll(self, theta, episode, variant, dataset, key, *, num_steps, **_):
        at = episode.step + jnp.arange(num_steps)
        losses = theta["a"][0] + 0.05 * jnp.abs(at - 8.0)
        episode = episode._replace(step=episode.step + num_steps)
        return Unrolled(episode, losses, losses, jnp.array(False))


def walk(es, windows):
    theta = {"a": jnp.array([0.5])}
    problem = Cliff()
    state = es.init(problem, theta)
    step = jax.jit(lambda s, k: estimated(es, problem, theta, s, None, k))
    rows = []
    for window in range(windows):
        estimate, state = step(state, jax.random.fold_in(jax.random.key(2), window))
        rows.append((estimate, state))
    return rows


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (PES, {}),
        (NoiseReuseES, {}),
        pytest.param(PES, {"refresh": 2}, marks=pytest.mark.slow),
    ],
)
def test_pairs_begin_again_at_the_cliff_and_are_credited_from_there(kind, fields):
    es = kind(
        **fields,
        num_pairs=PAIRS,
        chunk=PAIRS,
        truncation=WINDOW,
        lengths=EpisodeLengths(16, 16, staggered=False),
        resume=ResumeBuffer(slots=1, fresh=0.0, latest=100),
    )
    rows = walk(es, 9)
    steps = [int(state.episodes.step[0, 0]) for _, state in rows]
    # The third window rises by .2, the fourth by as much again: what is kept last is
    # the state at its beginning, step 12. From there 16 steps more.
    assert steps == [4, 8, 12, 16, 16, 20, 24, 28, 28]
    resumed = [float(estimate.metrics["resumed"]) for estimate, _ in rows]
    assert resumed == [0, 0, 0, 0, 1, 0, 0, 0, 1]
    lengths = [int(state.episodes.length[0, 0]) for _, state in rows]
    assert lengths == [16] * 4 + [28] * 4 + [40]
    struggling = [float(estimate.metrics["struggling"]) for estimate, _ in rows]
    assert struggling == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    begun = np.stack([np.asarray(state.episodes.begun) for _, state in rows])
    assert (begun == begun[0]).all()
    # Each term is (a + ε) − (a − ε) times the credit over 2σ², so ε · credit / σ².
    credit = np.stack([np.asarray(state.credit)[:, 0] for _, state in rows])
    term = np.stack([np.asarray(e.terms["a"])[:, 0] for e, _ in rows])
    noise = term * es.sigma**2 / credit
    # From the restart, in the fifth window, on: nothing of before is credited.
    np.testing.assert_allclose(noise[4], credit[4], rtol=1e-2)
    assert (np.abs(credit[4] - credit[3]) > 1e-4).all()


def test_without_slots_there_is_nothing_of_a_buffer_in_the_state():
    es = PES(num_pairs=PAIRS, chunk=PAIRS, truncation=WINDOW)
    theta = {"a": jnp.array([0.5])}
    assert es.init(Cliff(), theta).watch is None
    kept = dataclasses.replace(es, resume=ResumeBuffer(slots=3)).init(Cliff(), theta)
    assert kept.watch.snapshots.episode.begun.shape == (PAIRS, 3)


def test_pairs_that_share_a_task_cannot_have_buffers():
    with pytest.raises(ValueError, match=r"pairs_per_task = 2 .* resume.slots = 1"):
        PES(pairs_per_task=2, resume=ResumeBuffer(slots=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slots": -1}, r"resume.slots = -1 must be a whole number"),
        ({"slots": 1.5}, r"slots = 1.5 must be a whole number"),
        ({"latest": 0}, r"resume.latest = 0 must be a whole number in \[1"),
        ({"fresh": 1.1}, r"resume.fresh = 1.1 must lie in \[0, 1\]"),
        ({"threshold": -1.0}, r"resume.threshold = -1.0 must lie in"),
        ({"drift": float("nan")}, r"drift = nan must be a number"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ResumeBuffer(**fields)
