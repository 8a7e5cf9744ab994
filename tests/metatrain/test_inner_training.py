"""Objectives of real inner training: through windows, and in estimates."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.learned.learnable import LearnableSGD
from metatrain.estimators.pes import PES
from metatrain.estimators.truncated_es import TruncatedES
from metatrain.inner import Precisions
from metatrain.inner_training import InnerTraining, Unrolled
from metatrain.objective import Objective
from metatrain.outer import MetaTraining
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from tasks.synthetic.quadratics import Quadratic
from tests.metatrain.toy import estimated

TASK, LOPT = Quadratic(dimension=2, condition=3.0), LearnableSGD()
LENGTH, WINDOW, KEY = 12, 3, jax.random.key(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lopt": LearnableSGD}, "lopt = <class .* must be of type LearnedOptimizer"),
        ({"tasks": Quadratic}, "task = <class .* is a class: it must be an instance"),
        ({"tasks": 5}, "task = 5 is no task: it has no init, specs"),
        ({"estimator": PES}, "estimator = .* must be of type Estimator"),
        ({"outer": 3}, "outer = 3 must be of type OuterOptimizer"),
        ({"num_steps": 2.0}, "num_steps = 2.0 must be a whole number"),
        (
            {"precision": Precisions(features="bfloat16")},
            "feature_precision = 'bfloat16': LearnableSGD has no per-parameter network"
            ": .* leave it at float32",
        ),
    ],
)
def test_what_is_not_what_it_should_be_is_named(change, message):
    given = dict(tasks=TASK, lopt=LOPT, estimator=PES())
    with pytest.raises(ValueError, match=message):
        MetaTraining.on(**given | dict(outer=OuterOptimizer(), num_steps=2) | change)


@pytest.mark.parametrize(
    ("objective", "figure"),
    [
        (Objective(figure="minimum", cap=1e3), np.min),
        (Objective(figure="last_k", k=5, cap=1e3), lambda x: np.mean(x[-5:])),
        (Objective(figure="final", cap_form="smooth"), lambda x: x[-1]),
    ],
)
def test_an_episode_in_windows_has_the_figure_of_all_its_losses(objective, figure):
    problem = InnerTraining(TASK, LOPT, objective)
    # A rate at which one direction converges and the other one diverges.
    theta, data, key = {"log_learning_rate": jnp.log(2.1)}, TASK.load_data(), KEY
    variant = problem.sample(key)
    episode = problem.start(theta, variant, key, jnp.int32(LENGTH))
    advance = jax.jit(
        lambda episode, k: problem.unroll(
            theta, episode, variant, data, k, num_steps=WINDOW
        )
    )
    contributions, losses = [], []
    for window in range(LENGTH // WINDOW):
        unrolled = advance(episode, jax.random.fold_in(key, window))
        episode = unrolled.episode
        contributions.append(np.asarray(unrolled.contributions, np.float64))
        losses.append(np.asarray(unrolled.losses, np.float64))
    losses = np.concatenate(losses)
    assert losses.argmin() not in (0, LENGTH - 1)
    found = np.concatenate(contributions).sum() / LENGTH
    assert found == pytest.approx(figure(losses), rel=1e-5)
    assert hasattr(episode, "minimum") == (objective.figure == "minimum")


class Drift(NamedTuple):
    x: jax.Array
    step: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class Toy:
    """x ← .9 x + w·θ with losses x²: quadratic in θ, which smoothing does not bias."""

    objective: Objective

    def sample(self, key):
        return ()

    def start(self, theta, variant, key, length):
        return Drift(jnp.float32(0.0), jnp.int32(0), jnp.asarray(length, jnp.int32))

    def unroll(self, theta, episode, variant, dataset, key, *, num_steps, **_):
        def body(state, _):
            x = 0.9 * state.x + jnp.array([0.5, -0.3]) @ theta["a"]
            return state._replace(x=x, step=state.step + 1), x**2

        after, losses = jax.lax.scan(body, episode, None, length=num_steps)
        contributions, _ = self.objective.contributions(
            losses, episode.step, episode.length
        )
        return Unrolled(after, contributions, losses, jnp.array(False))


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["final", "last_k"])
def test_pes_is_unbiased_for_what_only_the_end_of_an_episode_decides(figure):
    toy, theta = Toy(Objective(figure=figure, k=4)), {"a": jnp.array([0.7, 0.2])}

    def loss(theta):
        start = toy.start(theta, (), None, LENGTH)
        return toy.unroll(
            theta, start, (), None, None, num_steps=LENGTH
        ).contributions.mean()

    truth, distances = np.asarray(jax.grad(loss)(theta)["a"]), {}
    for kind in (PES, TruncatedES):
        es = kind(
            num_pairs=4096,
            chunk=4096,
            truncation=WINDOW,
            sigma=0.1,
            lengths=EpisodeLengths(LENGTH, LENGTH, staggered=False),
        )
        step = jax.jit(lambda s, k, es=es: estimated(es, toy, theta, s, None, k))
        total = 0
        state = es.init(toy, theta)
        for window in range(LENGTH // WINDOW):
            estimate, state = step(state, jax.random.fold_in(KEY, window))
            total = total + np.asarray(estimate.terms["a"], np.float64)
        terms = total / (LENGTH // WINDOW)
        error = terms.std(axis=0, ddof=1) / np.sqrt(len(terms))
        distances[kind] = np.abs(terms.mean(axis=0) - truth) / error
    assert (distances[PES] < 4.0).all(), distances
    assert (distances[TruncatedES] > 4.0).all(), distances  # the control
