"""Normalization, the cap, and figures of an episode from the windows of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metatrain.objective import Objective

CAP = 1.5


def test_losses_are_divided_by_chance_and_capped():
    losses = jnp.array([0.0, 1.0, 2.0, 2.9, 3.1, 1e30, jnp.inf, jnp.nan, -jnp.inf])
    normalized = Objective(cap=1.5).normalize(losses, 2.0)
    np.testing.assert_allclose(
        normalized, [0.0, 0.5, 1.0, 1.45, 1.5, 1.5, 1.5, 1.5, 1.5], rtol=1e-6
    )


def test_what_stands_at_the_cap_has_diverged():
    normalized = Objective().normalize(
        jnp.array([1.0, -1.0, 1e9, jnp.nan, -jnp.inf]), 1.0
    )
    np.testing.assert_array_equal(
        Objective().diverged(normalized), [False, False, True, True, True]
    )


def test_a_smooth_cap_is_the_identity_up_to_chance_and_monotone_far_above_it():
    objective = Objective(cap_form="smooth", cap=CAP)
    small = np.linspace(0.0, 1.0, 101, dtype=np.float32)
    large = np.geomspace(1.0, 1e38, 400, dtype=np.float32)  # 25 % apart
    near, ends = [1.001], [np.inf, np.nan, -np.inf, -3.0]
    losses = np.concatenate([small, large, near, ends]).astype(np.float32)
    softened = np.asarray(jax.jit(objective.normalize, static_argnums=1)(losses, 1.0))
    small_too, large_too, near_too, ends_too = np.split(softened, [101, 501, 502])
    np.testing.assert_array_equal(small_too, small)
    assert (np.diff(large_too) > 0).all() and large_too[-1] < CAP
    x = large.astype(np.float64)
    expected = CAP - (CAP - 1) / (1 + np.log1p((x - 1) / (CAP - 1)))
    np.testing.assert_allclose(large_too, expected, rtol=1e-6)
    # The slope at chance is 1 on both sides of it.
    np.testing.assert_allclose(near_too - 1.0, 0.001, rtol=5e-3)
    np.testing.assert_array_equal(ends_too, [CAP, CAP, CAP, 0])


def test_both_forms_of_the_cap_agree_on_what_has_diverged():
    losses = jnp.array([0.2, 1.0, 1.2, 1.49, 1.51, 7.0, 1e30, jnp.inf, jnp.nan])
    flags = [
        form.diverged(form.normalize(losses, 1.0))
        for form in (Objective(), Objective(cap_form="smooth"))
    ]
    np.testing.assert_array_equal(flags[0], [False] * 4 + [True] * 5)
    np.testing.assert_array_equal(flags[1], flags[0])


def in_windows(objective, losses, length, window):
    """Contributions of an episode [L] that is walked through in windows, float64."""
    normalized = objective.normalize(jnp.asarray(losses, jnp.float32), 2.0)
    # Of no meaning, since the first window does not read it.
    minimum, parts = jnp.float32(0.123), []
    for begin in range(0, length, window):
        part, minimum = objective.contributions(
            normalized[begin : begin + window],
            jnp.int32(begin),
            jnp.int32(length),
            minimum,
        )
        parts.append(np.asarray(part, np.float64))
    return np.concatenate(parts)


FIGURES = {
    ("mean", 1): lambda x: x.mean(),
    ("final", 1): lambda x: x[-1],
    ("last_k", 1): lambda x: x[-1],
    ("last_k", 4): lambda x: x[-4:].mean(),
    ("last_k", 7): lambda x: x[-7:].mean(),
    ("last_k", 99): lambda x: x.mean(),
    ("mean_log", 1): lambda x: np.log(x + 1e-3).mean(),
    ("minimum", 1): lambda x: x.min(),
}


def losses_of(kind):
    losses = 2.0 * np.random.RandomState(3).uniform(0.1, 1.3, 12)
    if kind == "nan":
        losses[[0, 6, 11]] = np.nan
    if kind == "diverged":
        losses[7:] = [1e3, 1e9, 1e30, np.inf, np.nan]
    return losses


@pytest.mark.parametrize("kind", ["ordinary", "nan", "diverged"])
@pytest.mark.parametrize(("figure", "k"), FIGURES)
def test_contributions_average_to_the_figure_of_the_whole_episode(figure, k, kind):
    losses = losses_of(kind)
    capped = np.where(np.isnan(losses), CAP, np.clip(losses / 2.0, 0.0, CAP))
    expected = FIGURES[figure, k](capped)
    objective = Objective(figure=figure, k=k, cap=CAP)
    for window in (2, 3):  # the first divides k = 4, the second does not
        contributions = in_windows(objective, losses, 12, window)
        assert np.isfinite(contributions).all()
        np.testing.assert_allclose(contributions.sum() / 12, expected, rtol=1e-5)


def test_figures_differ_so_that_none_can_stand_for_another():
    capped = np.clip(losses_of("ordinary") / 2.0, 0.0, CAP)
    values = {key: figure(capped) for key, figure in FIGURES.items()}
    del values["last_k", 1], values["last_k", 99]  # the same as final and as mean
    values = sorted(values.values())
    assert np.diff(values).min() > 1e-3


def test_a_minimum_is_credited_to_the_steps_that_improved_it():
    losses = 2.0 * np.array([0.9, 1.0, 0.7, 0.8, 0.4, 0.6])
    contributions = in_windows(Objective(figure="minimum"), losses, 6, 2)
    expected = 6 * np.array([0.9, 0.0, -0.2, 0.0, -0.3, 0.0])
    np.testing.assert_allclose(contributions, expected, atol=1e-5)


def test_the_mean_contributes_its_losses_as_they_are():
    losses = jnp.array([0.3, 0.1])
    assert Objective().contributions(losses, jnp.int32(4), jnp.int32(8))[0] is losses


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cap": -1}, r"objective.cap = -1"),
        ({"cap": float("nan")}, r"cap = nan"),
        ({"cap": 1.0, "cap_form": "smooth"}, r"objective.cap = 1.0 must be above 1"),
        ({"figure": "median"}, r"figure = 'median' must be one of mean, fin"),
        ({"cap_form": "soft"}, r"cap_form = 'soft' must be one of hard, smo"),
        ({"figure": "last_k", "k": 0}, r"objective.k = 0 must be a whole number"),
        ({"floor": 0.0}, r"objective.floor = 0.0 must lie in \[1e-30, 1e6\]"),
        ({"k": 2.0}, r"k = 2.0 must be a whole number"),
        ({"split": "test"}, r"split = 'test'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Objective(**fields)
