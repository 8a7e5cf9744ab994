"""Noise levels, weights and samplers against float64 and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.generation import diffusion

KEY = jax.random.key(5)


def alpha_bar(times):
    """Squared cosine with s = .008, clipped, in float64."""
    times = np.asarray(times, np.float64)
    shape = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    start = np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    return np.clip(shape / start, 1e-4, 0.9999)


GRID = np.linspace(0, 1, 1001, dtype=np.float32)


def test_the_share_of_the_signal_falls_between_its_ends():
    found = np.asarray(jax.jit(diffusion.alpha_bar)(GRID))
    np.testing.assert_allclose(found, alpha_bar(GRID), rtol=1e-3, atol=1e-6)
    assert found[0] == np.float32(0.9999) and found[-1] == np.float32(1e-4)
    assert (np.diff(found) <= 0).all()
    between = (found < np.float32(0.9999)) & (found > np.float32(1e-4))
    assert (np.diff(found[between]) < 0).all() and between.sum() > 980


def test_the_weight_is_one_over_one_plus_the_signal_to_noise_ratio():
    share = alpha_bar(GRID)
    want = 1 / (1 + share / (1 - share))
    found = np.asarray(jax.jit(diffusion.p2_weight)(GRID), np.float64)
    # 1 − ᾱ in float32 has an absolute error of the order of its rounding near 1.
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=3e-7)


def test_times_are_stretched_and_cut():
    draw = jax.jit(diffusion.draw_times, static_argnums=1)
    times = np.asarray(draw(KEY, 100_000), np.float64)
    assert times.min() >= np.float32(0.001) and times.max() == 1.0
    share = 1 - 0.999 / 1.08  # of those that are cut
    error = 4.5 * np.sqrt(share * (1 - share) / len(times))
    assert np.mean(times == 1.0) == pytest.approx(share, abs=error)
    rest = times[times < 1]
    assert rest.mean() == pytest.approx(0.5005, abs=4.5 * 0.2887 / np.sqrt(len(rest)))


def test_undiffuse_with_the_true_noise_is_the_inverse():
    times = np.float32([0.0, 1e-3, 0.1, 0.4, 0.7, 0.95, 1.0])

    @jax.jit
    def compute(key):
        clean, noise = jax.random.normal(key, (2, 7, 3, 2))
        noisy = diffusion.diffuse(clean, noise, jnp.asarray(times))
        return clean, noise, noisy, diffusion.undiffuse(noisy, noise, times)

    clean, noise, noisy, back = map(np.asarray, compute(KEY))
    share = alpha_bar(times).reshape(7, 1, 1)
    want = np.sqrt(share) * np.float64(clean) + np.sqrt(1 - share) * np.float64(noise)
    np.testing.assert_allclose(noisy, want, atol=1e-5)
    errors = np.abs(np.float64(back) - clean).max((1, 2))
    # Rounding of x_t, of order 1e-7, is divided by √ᾱ: nothing at t → 0.
    assert (errors < 1e-6 / np.sqrt(share.ravel())).all() and errors[0] < 5e-7
    # As t → 0 the noisy value itself is the clean one, up to the clip of .0001.
    assert np.abs(noisy[0] - clean[0]).max() < 0.011 * np.abs(noise[0]).max()


def test_the_loss_is_a_weighted_mean_over_examples():
    rng = np.random.default_rng(0)
    guess, noise = rng.normal(size=(2, 5, 2, 3))
    times = rng.uniform(size=5)
    errors = ((guess - noise) ** 2).mean((1, 2))
    found = jax.jit(diffusion.weighted_error)(*map(np.float32, (guess, noise, times)))
    want = ((1 - alpha_bar(times)) * errors).mean(), errors.mean()
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_guidance_is_a_line_through_both_guesses():
    without, given = np.float32([1.0, 2.0]), np.float32([3.0, -2.0])
    for weight, want in ((0, [1, 2]), (1, [3, -2]), (4, [9, -14])):
        found = diffusion.guide(without, given, float(weight))
        np.testing.assert_array_equal(found, np.float32(want))


MEAN, STD = np.array([1.5, -0.5]), np.array([0.5, 2.0])


def predict(noisy, times):
    """The exact guess E[ε | x_t] for data from N(MEAN, STD²)."""
    share = diffusion.alpha_bar(times)[:, None]
    share = jnp.broadcast_to(share, noisy.shape)
    mean, std = (jnp.broadcast_to(jnp.float32(x), noisy.shape) for x in (MEAN, STD))
    variance = share * std**2 + 1 - share
    return jnp.sqrt(1 - share) * (noisy - jnp.sqrt(share) * mean) / variance


def moments(num_steps, sampler):
    """Mean and variance after every step in float64: each is affine in x."""
    mean, variance = np.zeros(2), np.ones(2)
    shares = alpha_bar(np.linspace(1, 0, num_steps + 1))
    for index, (now, then) in enumerate(itertools.pairwise(shares)):
        total = now * STD**2 + 1 - now
        # ε̂ = e (x − √ᾱ MEAN) and x̂_0 = c x + d.
        e = np.sqrt(1 - now) / total
        c = (1 - np.sqrt(1 - now) * e) / np.sqrt(now)
        d = np.sqrt(1 - now) * e * MEAN
        if index == num_steps - 1:
            slope, shift, fresh = c, d, 0.0
        elif sampler == "ddim":
            slope = np.sqrt(then) * c + np.sqrt(1 - then) * e
            shift = np.sqrt(then) * d - np.sqrt(1 - then) * e * np.sqrt(now) * MEAN
            fresh = 0.0
        else:  # Ho et al., Equation 7, with β = 1 − ᾱ_t/ᾱ_s
            beta = 1 - now / then
            to_clean = np.sqrt(then) * beta / (1 - now)
            slope = to_clean * c + np.sqrt(1 - beta) * (1 - then) / (1 - now)
            shift = to_clean * d
            fresh = beta * (1 - then) / (1 - now)
        mean, variance = slope * mean + shift, slope**2 * variance + fresh
    return mean, variance


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_samples_with_the_exact_guess_are_those_of_the_closed_form(sampler):
    num, steps = 20_000, 40
    start = jax.jit(lambda key: jax.random.normal(key, (num, 2)))(KEY)
    run = jax.jit(
        lambda start, key: diffusion.sample(predict, start, key, steps, sampler)
    )
    samples = np.asarray(run(start, jax.random.key(1)), np.float64)
    mean, variance = moments(steps, sampler)
    error = np.sqrt(variance / num)
    assert (np.abs(samples.mean(0) - mean) < 4.5 * error).all()
    assert (np.abs(samples.var(0) / variance - 1) < 4.5 * np.sqrt(2 / num)).all()
    # What 40 steps make is near the data itself, and more steps come nearer.
    distance = [
        np.abs(np.sqrt(moments(n, sampler)[1]) / STD - 1).max() for n in (40, 4000)
    ]
    assert distance[0] < 0.15 and distance[1] < 0.02
    assert np.abs(mean - MEAN).max() < 0.1
    # ddim is a function of its start; ddpm draws.
    again = np.asarray(run(start, jax.random.key(2)), np.float64)
    assert np.array_equal(again, samples) == (sampler == "ddim")
    if sampler == "ddim":  # and a monotone one: order is kept
        order = np.argsort(np.asarray(start)[:, 0])[::400]
        assert (np.diff(samples[order, 0]) > 0).all()


def test_a_step_of_ddim_keeps_the_guessed_noise():
    late, early = np.full(4, 0.8, np.float32), np.full(4, 0.3, np.float32)

    @jax.jit
    def compute(key):
        clean, noise = jax.random.normal(key, (2, 4, 3))
        noisy = diffusion.diffuse(clean, noise, late)
        found = diffusion.ddim_step(noisy, noise, late, early)
        return found, diffusion.diffuse(clean, noise, early)

    found, want = compute(KEY)
    np.testing.assert_allclose(found, want, atol=2e-6)
