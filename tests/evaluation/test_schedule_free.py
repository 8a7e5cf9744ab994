"""Schedule-free optimizers are trained at one point and evaluated at another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation import run, tune
from lopt import Adam, Muon, Prodigy, ScheduleFreeAdamW, evaluation_params
from lopt.schedules import WarmupCosine
from parametrization import Axes, ParamSpec

FREE = ScheduleFreeAdamW(0.1)
NUM_STEPS = 6


def reference():
    """Losses of ½·x² from 1, at y before each update and at the average x after it."""
    y = z = x = 1.0
    v, training, held_out = 0.0, [], []
    for t in range(1, NUM_STEPS + 1):
        training.append(0.5 * y**2)
        grad = y / 4  # of the mean over 4 elements
        v = 0.999 * v + 0.001 * grad**2
        z = z - 0.1 * grad / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x + (z - x) / t
        y = 0.1 * z + 0.9 * x
        held_out.append(0.5 * x**2)
    assert abs(0.5 * y**2 - held_out[-1]) > 1e-2
    return np.array(training), np.array(held_out)


def test_held_out_losses_are_those_of_the_average(tasks):
    training, held_out = reference()
    result = run.evaluate(
        tasks.quadratic, FREE, FREE.init(None), NUM_STEPS, (3,), jnp.zeros(1)
    )
    np.testing.assert_allclose(result.curve[0], training, rtol=1e-5)
    np.testing.assert_allclose(result.valid_loss[0], held_out[-1], rtol=1e-5)
    np.testing.assert_allclose(result.test_loss[0], held_out[-1], rtol=1e-5)


def test_so_are_the_held_out_losses_along_the_run(tasks):
    training, held_out = reference()
    got = run.mean_loss(
        tasks.quadratic, FREE, FREE.init(None), NUM_STEPS, (3,), jnp.zeros(1)
    )
    np.testing.assert_allclose(got, [held_out.mean(), training.mean()], rtol=1e-5)


def test_other_optimizers_are_evaluated_at_their_parameters():
    params = {"x": jnp.ones(3)}
    specs = {"x": ParamSpec(Axes.parse("-> width"), (3,), (3,))}
    for rule in (Adam(), Prodigy()):
        state = rule.as_optax(rule.init(None), specs, 1).init(params)
        assert evaluation_params(state, params) is params


@pytest.mark.parametrize("baseline", [FREE, Prodigy(first_estimate=1e-2)])
def test_tuning_runs_the_baseline_with_the_rate_itself(tasks, baseline):
    # Their updates are not linear in the learning rate: a scaled unit step is another.
    theta = jax.tree.map(lambda x: x[0], tune.scheduled_theta([0.5], ["cosine"]))
    plain = type(baseline)(**{**vars(baseline), "schedule": "cosine"})
    rate = {"learning_rate": theta["learning_rate"]}
    got, want = (
        run.evaluate(tasks.quadratic, rule, its, NUM_STEPS, (3,), jnp.zeros(1))
        for rule, its in ((tune.Scheduled(baseline), theta), (plain, rate))
    )
    np.testing.assert_allclose(got.curve, want.curve, rtol=1e-5)
    np.testing.assert_allclose(got.test_loss, want.test_loss, rtol=1e-5)
    assert want.curve[0, -1] < want.curve[0, 0]


def test_phases_are_not_what_tuning_tries(tasks):
    baseline = Muon(schedule=WarmupCosine())
    with pytest.raises(ValueError, match=r"schedule = WarmupCosine.* must be one of"):
        tune.tune(tasks.quadratic, baseline, NUM_STEPS)
