"""The family of evolution strategies on a toy with a known meta-gradient."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metatrain.estimators.controls import Controls
from metatrain.estimators.noise_reuse_es import NoiseReuseES
from metatrain.estimators.perturbation import raveled_factors
from metatrain.estimators.pes import PES
from metatrain.estimators.truncated_es import TruncatedES
from metatrain.keys import stream
from metatrain.truncation import EpisodeLengths
from metatrain.unroll import Windowed
from tests.metatrain.toy import (
    DECAY,
    EPISODE,
    LENGTH,
    PLAIN,
    THETA,
    WEIGHTS,
    WINDOW,
    WINDOWS,
    Toy,
    advance,
    begin,
    block_gradients,
    deviation,
    episode_gradient,
    window_keys,
    windows_of,
)

FAMILY = {
    "pes": (PES, {}),
    "gpes_2": (PES, {"refresh": 2}),
    "noise_reuse": (NoiseReuseES, {}),
    "truncated": (TruncatedES, {}),
}


MANY = 16384


def strategy(kind=PES, **fields):
    defaults = dict(num_pairs=3, truncation=WINDOW, sigma=0.1, lengths=EPISODE)
    es = kind(**(defaults | fields | {"chunk": 1}))
    return dataclasses.replace(es, chunk=fields.get("chunk", es.num_pairs))


@functools.cache
def terms_of(name):
    """Terms [W, N, 2] of one of the family, with many pairs."""
    kind, fields = FAMILY[name]
    return windows_of(strategy(kind, num_pairs=MANY, **fields))["a"]


@pytest.mark.parametrize("name", ["pes", "gpes_2", "noise_reuse"])
def test_credit_of_all_noises_is_unbiased(name):
    away = deviation(terms_of(name), episode_gradient()["a"])
    assert np.all(away < 4.0), away


def test_full_es_is_unbiased():
    es = NoiseReuseES.full(LENGTH, num_pairs=MANY, chunk=MANY, sigma=0.1)
    terms = windows_of(es, windows=1)["a"]
    away = deviation(terms, episode_gradient()["a"])
    assert np.all(away < 4.0), away


def test_truncated_es_is_visibly_biased():
    away = deviation(terms_of("truncated"), episode_gradient()["a"])
    assert np.all(away > 4.0), away


def test_variance_falls_as_noises_are_kept_longer_as_theory_says():
    """As Li et al., arXiv:2304.12180, Theorem 6 and Corollary 7, on a quadratic loss.

    With J noises of d dimensions and gradients g_j by them, whose sum is g, a term is
    Σ ε_j·g_j Σ ε_k / σ², and normal moments give the trace of its covariance:
    d·J·Σ‖g_j‖² + ‖g‖².
    """
    gradients, expected, measured, error = block_gradients(), [], [], []
    for name, kept in (("pes", 1), ("gpes_2", 2), ("noise_reuse", WINDOWS)):
        traces = []
        for window in range(WINDOWS):
            blocks = [
                gradients[window, first : min(first + kept, window + 1)].sum(0)
                for first in range(0, window + 1, kept)
            ]
            whole = sum(blocks)
            squares = sum(b @ b for b in blocks)
            traces.append(2 * len(blocks) * squares + whole @ whole)
        terms = terms_of(name)
        squares = ((terms - terms.mean(axis=1, keepdims=True)) ** 2).sum(-1).mean(0)
        expected.append(np.mean(traces))
        measured.append(squares.mean())
        error.append(squares.std(ddof=1) / np.sqrt(len(squares)))
    away = np.abs(np.subtract(measured, expected)) / error
    assert np.all(away < 4.0), away
    assert expected[0] > 1.1 * expected[1] > 1.1**2 * expected[2]
    for more in (0, 1):
        gap = measured[more] - measured[more + 1]
        assert gap > 4 * np.hypot(error[more], error[more + 1]), (measured, error)


# As users run them: with fusions, which could round in other ways.
@pytest.mark.optimized
def test_with_one_window_an_episode_the_whole_family_is_full_es_bit_for_bit():
    shared = dict(num_pairs=4, chunk=4, sigma=0.1)
    windows = shared | dict(truncation=LENGTH, lengths=EPISODE)
    full = windows_of(NoiseReuseES.full(LENGTH, **shared), windows=3)["a"]
    assert np.all(full != 0)
    for made in (PES(**windows), TruncatedES(**windows)):
        np.testing.assert_array_equal(windows_of(made, windows=3)["a"], full)
    assert NoiseReuseES(**windows) == NoiseReuseES.full(LENGTH, **shared)


def noise_of(es, key, pair):
    drawn = jax.random.normal(stream(jax.random.fold_in(key, pair), "noise"), (2,))
    return es.sigma * np.asarray(drawn)


@pytest.mark.parametrize("refresh", [1, 3, None])
def test_the_last_window_is_credited_with_the_whole_episode_and_a_reset_forgets_it(
    refresh,
):
    """With a noise for every so many windows, or one for the episode."""
    es = strategy(refresh=refresh) if refresh else strategy(NoiseReuseES)
    toy = PLAIN
    state = begin(es, toy)
    noises = []
    for window in range(WINDOWS + 1):
        key = jax.random.fold_in(jax.random.key(5), window)
        before = np.asarray(state.episodes.x)
        estimate, state = advance(es, toy, state, key)
        begins = window in (0, WINDOWS)
        if begins:  # after the episode's last window both members begin anew, at x = 0
            before, noises = np.zeros_like(before), []
        if begins or (refresh and window % refresh == 0):
            noises.append(np.stack([noise_of(es, key, i) for i in range(3)]))
        ends = [
            member_losses(before[:, i], sign * noises[-1])
            for i, sign in ((0, 1), (1, -1))
        ]
        credit = np.sum(noises, axis=0)
        expected = (ends[0] - ends[1])[:, None] * credit / (2 * es.sigma**2)
        np.testing.assert_allclose(estimate.terms["a"], expected, rtol=2e-3, atol=1e-5)
    assert len(noises) == 1


def member_losses(x, noise):
    """Mean loss of one window from states [N] at THETA + noise [N, 2]."""
    x, losses = np.array(x, np.float64), []
    push = (np.asarray(THETA["a"]) + noise) @ np.asarray(WEIGHTS)
    for _ in range(WINDOW):
        x = DECAY * x + push
        losses.append(x**2)
    return np.mean(losses, axis=0)


@dataclasses.dataclass(frozen=True)
class HalfFrozen(Toy):
    frozen = ("b",)


def test_what_is_frozen_is_not_perturbed_and_has_no_gradient():
    es, toy = strategy(num_pairs=2, refresh=2), HalfFrozen()
    theta = {"a": THETA["a"], "b": jnp.ones(3)}
    state, estimates = begin(es, toy, theta), []
    for key in window_keys(seed=3, windows=2):
        estimate, state = advance(es, toy, state, key, theta)
        estimates.append(estimate)
    assert all((np.asarray(e.grad["b"]) == 0).all() for e in estimates)
    assert all((np.asarray(e.grad["a"]) != 0).all() for e in estimates)
    assert (np.asarray(state.credit)[:, 2:] == 0).all()
    with pytest.raises(ValueError, match="theta has no part 'b'"):
        advance(es, toy, begin(es, PLAIN), key)


def test_chunks_change_nothing_but_rounding():
    grads = []
    for chunk in (8, 2):
        es = strategy(num_pairs=8, chunk=chunk)
        estimate, _ = advance(es, PLAIN, begin(es, PLAIN), jax.random.key(1))
        grads.append(np.asarray(estimate.grad["a"]))
        mean = np.mean(estimate.terms["a"], axis=0)
        np.testing.assert_allclose(estimate.grad["a"], mean, rtol=1e-5)
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-5)
    assert np.all(grads[0] != 0)


# What the pairs of a task share.

NOISY = Toy(noise=0.5)


def test_pairs_of_a_task_share_beginnings_lengths_and_batches():
    lengths = EpisodeLengths(WINDOW, LENGTH)
    shared = strategy(num_pairs=6, pairs_per_task=3, lengths=lengths, sigma=1e-18)
    state = begin(shared, NOISY)
    differ = False
    for window in range(5):
        key = jax.random.key(window)
        begun = jax.tree.map(np.asarray, state.episodes)
        estimate, state = advance(shared, NOISY, state, key)
        mean = np.mean(estimate.terms["a"], axis=0)
        np.testing.assert_allclose(estimate.grad["a"], mean, rtol=1e-5)
        ends = jax.tree.map(np.asarray, state.episodes)
        # Noise too small to move θ: what is shared is the same bits.
        for leaf in ends:
            tasks = leaf.reshape(2, 6)
            np.testing.assert_array_equal(tasks, np.repeat(tasks[:, :1], 6, axis=1))
        differ |= ends.length[0, 0] != ends.length[3, 0]
        assert ends.x[0, 0] != ends.x[3, 0]
        noises = np.asarray(state.credit)
        assert len(np.unique(noises[:, 0])) == 6
        # The keys that a feed of data is told are those that were used.
        keys = jax.random.key_data(shared.data_keys(key)).tolist()
        assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4] == keys[5]
        for pair in (0, 5):
            if begun.step[pair, 0] < begun.length[pair, 0]:
                episode = jax.tree.map(lambda x, i=pair: x[i, 0], begun)
                own = shared.data_keys(key)[pair]
                again = NOISY.unroll(THETA, episode, (), None, own, num_steps=WINDOW)
                np.testing.assert_allclose(again.episode.x, ends.x[pair, 0], rtol=1e-6)
    assert differ


def test_pairs_that_share_batches_and_members_that_do_not_are_unbiased():
    spread = {}
    for common in (True, False):
        controls = Controls(common_random_numbers=common)
        es = strategy(num_pairs=MANY, pairs_per_task=4, controls=controls)
        terms = windows_of(es, NOISY)["a"]
        away = deviation(terms, episode_gradient()["a"], together=4)
        assert np.all(away < 4.0), (common, away)
        spread[common] = terms.mean(axis=0).var(axis=0).sum()
    # The noise of 0.5 in each step is many times what θ ± 0.1 · noise does to it.
    assert spread[False] > 3 * spread[True], spread
    with pytest.raises(ValueError, match="common_random_numbers = False: streamed"):
        es.data_keys(jax.random.key(0))
    state, streamed = begin(es, NOISY), Windowed(None, jnp.zeros(MANY))
    with pytest.raises(ValueError, match="common_random_numbers = False: streamed"):
        es.advance(NOISY, THETA, state, streamed, jax.random.key(0))


@pytest.mark.slow
def test_orthogonal_noises_are_orthogonal_normal_and_unbiased():
    controls = Controls(orthogonal=True)
    es = strategy(num_pairs=MANY, pairs_per_task=2, controls=controls)
    _, state = advance(es, PLAIN, begin(es, PLAIN), jax.random.key(0))
    noise = np.asarray(state.credit, np.float64).reshape(-1, 2, 2) / es.sigma
    products = np.abs((noise[:, 0] * noise[:, 1]).sum(-1))
    lengths = np.linalg.norm(noise, axis=-1)
    assert np.max(products / lengths.prod(-1)) < 1e-5
    # Each alone is normal: mean, covariance and fourth moment within 4 standard errors.
    for values, expected, spread in (
        (noise, 0.0, 1.0),
        (noise**2, 1.0, np.sqrt(2.0)),
        (noise**4, 3.0, np.sqrt(96.0)),
        (noise[..., :1] * noise[..., 1:], 0.0, 1.0),
    ):
        error = 4 * spread / np.sqrt(len(noise))
        np.testing.assert_allclose(values.mean(axis=0), expected, atol=error)
    away = deviation(windows_of(es)["a"], episode_gradient()["a"], together=2)
    assert np.all(away < 4.0), away


# What a pair's difference of losses is made of.


def one_window(**controls):
    """Differences of losses [8] and terms [8, 2] of a first window."""
    es = strategy(num_pairs=8, controls=Controls(**controls))
    estimate, state = advance(es, PLAIN, begin(es, PLAIN), jax.random.key(1))
    credit = np.asarray(state.credit, np.float64)
    terms = np.asarray(estimate.terms["a"], np.float64)
    return 2 * es.sigma**2 * terms / credit, credit


def test_signs_and_clipped_differences_replace_differences():
    plain, noise = one_window()
    np.testing.assert_allclose(plain[:, 0], plain[:, 1], rtol=1e-4)
    signed, same = one_window(sign_difference=0.25)
    np.testing.assert_array_equal(noise, same)
    np.testing.assert_allclose(signed, 0.25 * np.sign(plain), rtol=1e-5)
    bound = float(np.median(np.abs(plain)))
    clipped, _ = one_window(clip_difference=bound)
    np.testing.assert_allclose(clipped, np.clip(plain, -bound, bound), rtol=1e-4)
    assert {*np.sign(plain[:, 0])} == {-1.0, 1.0}


def test_a_difference_that_is_not_finite_counts_as_zero_and_is_counted():
    es = strategy()
    _, begun = advance(es, PLAIN, begin(es, PLAIN), jax.random.key(0))
    clean, clean_state = advance(es, PLAIN, begun, jax.random.key(1))
    for value in (np.nan, np.inf):
        poisoned = begun._replace(
            episodes=begun.episodes._replace(x=begun.episodes.x.at[1].set(value))
        )
        dirty, state = advance(es, PLAIN, poisoned, jax.random.key(1))
        assert np.all(np.asarray(dirty.terms["a"])[1] == 0.0)
        for pair in (0, 2):
            np.testing.assert_array_equal(
                dirty.terms["a"][pair], clean.terms["a"][pair]
            )
        np.testing.assert_array_equal(state.credit, clean_state.credit)
        assert float(dirty.metrics["nonfinite"]) == pytest.approx(1 / 3)
        assert np.all(np.isfinite(dirty.grad["a"]))
    assert float(clean.metrics["nonfinite"]) == 0.0


# Standard deviations by part of θ.

PARTS = {"a": THETA["a"], "c": jnp.array([0.1])}


def test_parts_with_factors_of_their_own_are_unbiased():
    sigma, factors = 0.05, np.array([30.0, 30.0, 0.5])
    paths = (("a", 30.0), ("c", 0.5))
    es = strategy(num_pairs=MANY, sigma=sigma, sigma_factors=paths)
    terms, truth = windows_of(es, theta=PARTS), episode_gradient(PARTS)
    for part in PARTS:
        away = deviation(terms[part], truth[part])
        assert np.all(away < 4.0), (part, away)
    # Of a first window everything is known.
    state = begin(es, PLAIN, PARTS)
    estimate, state = advance(es, PLAIN, state, jax.random.key(1), PARTS)
    noise = np.asarray(state.credit, np.float64)
    drawn = noise / (sigma * factors)
    error = 4 * np.sqrt(2.0 / MANY)
    np.testing.assert_allclose((drawn**2).mean(axis=0), 1.0, atol=error)
    push = np.asarray(WEIGHTS @ PARTS["a"] + PARTS["c"].sum(), np.float64)
    added = noise @ np.array([*np.asarray(WEIGHTS, np.float64), 1.0])
    ends = []
    for sign in (1.0, -1.0):
        x, loss = 0.0, 0.0
        for _ in range(WINDOW):
            x = DECAY * x + push + sign * added
            loss = loss + x**2 / WINDOW
        ends.append(loss)
    want = (ends[0] - ends[1])[:, None] * noise / (2 * sigma**2 * factors**2)
    got = np.concatenate([estimate.terms["a"], estimate.terms["c"]], axis=1)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_factors_find_their_parts_by_path_and_the_last_counts():
    theta = {"b": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "bb": jnp.ones(1)}
    from_paths = PES(sigma_factors=(("b", 2.0), ("b/kernel", 3.0), ("bb", 5.0)))
    dotted = PES(sigma_factors=(("b.kernel", 3.0), ("b", 2.0)))
    factors = raveled_factors(theta, from_paths.sigma_factors)
    np.testing.assert_array_equal(factors, [2.0] * 3 + [3.0] * 6 + [5.0])
    factors = raveled_factors(theta, dotted.sigma_factors)
    np.testing.assert_array_equal(factors, [2.0] * 9 + [1.0])
    unknown = PES(sigma_factors=(("b/scale", 3.0),))
    with pytest.raises(ValueError, match="nothing at 'b/scale'; it has b/bias, b/kern"):
        unknown.init(Toy(), theta)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_pairs": 0}, "num_pairs = 0"),
        ({"truncation": -1}, "truncation = -1"),
        ({"sigma": 0.0}, "sigma = 0.0"),
        ({"sigma": float("nan")}, "sigma = nan"),
        ({"num_pairs": 8, "chunk": 3}, "chunk = 3 must divide num_pairs = 8"),
        ({"refresh": 0}, "refresh = 0 must be a positive"),
        ({"refresh": "window"}, "refresh = 'window' must be a whole number"),
        ({"pairs_per_task": 2}, "pairs_per_task = 2 must divide num_pairs = 3"),
        ({"pairs_per_task": 0}, "pairs_per_task = 0"),
        ({"sigma_factors": (("a", -1.0),)}, "sigma_factors: -1.0 of 'a'"),
        (
            {"sigma_factors": (("a", float("nan")),)},
            r"sigma_factors\[0\]\[1\] = nan",
        ),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        strategy(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sign_difference": 0.0}, "controls.sign_difference = 0.0"),
        ({"clip_difference": float("inf")}, "controls.clip_difference = inf"),
        (
            {"clip_difference": 1.0, "sign_difference": 1.0},
            "controls.clip_difference = 1.0 has no effect on signs",
        ),
    ],
)
def test_bad_controls_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Controls(**fields)


def test_more_orthogonal_noises_than_dimensions_are_refused():
    controls = Controls(orthogonal=True)
    es = strategy(num_pairs=3, pairs_per_task=3, controls=controls)
    with pytest.raises(ValueError, match="pairs_per_task = 3 orthogonal noises need"):
        es.init(Toy(), THETA)
