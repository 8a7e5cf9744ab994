"""An expert beside a learned optimizer: blended steps, imitation, and their ramp."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.baselines import SGD, Adam, Muon, ScheduleFreeAdamW
from lopt.learned.learnable import LearnableSGD
from lopt.learned.small_fc import SmallFC
from metatrain.estimators.pes import PES
from metatrain.expert import LARGEST_RATIO, Expert, compare
from metatrain.inner_training import InnerTraining
from metatrain.objective import Objective
from metatrain.outer import MetaTraining
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE
from tasks.classification import ImageClassification
from tasks.models.mlp import MLP
from tasks.synthetic.quadratics import Quadratic
from tests.metatrain.toy import estimated

TASK = Quadratic(dimension=3)
KEY = jax.random.key(0)
RATE, EXPERT_RATE, STEPS = 0.05, 0.4, 6
LOPT = LearnableSGD(initial_learning_rate=RATE)
compared = jax.jit(compare)
RAMP = dict(full_until=100, over_at=300)


@pytest.fixture(scope="module")
def data():
    return TASK.load_data()


def runner(problem, dataset, num_steps=STEPS):
    """A compiled window of one member, from a fresh start: `run(outer_step)`."""
    theta = problem.lopt.init(jax.random.key(3))

    @jax.jit
    def run(outer_step):
        variant = problem.sample(KEY)
        episode = problem.start(theta, variant, jax.random.key(1), jnp.int32(20))
        return problem.unroll(
            theta,
            episode,
            variant,
            dataset,
            jax.random.key(2),
            num_steps=num_steps,
            outer_step=outer_step,
        )

    return run


@pytest.fixture(scope="module")
def guided(data):
    """SGD that learns its rate, beside an SGD of another rate."""
    expert = Expert(SGD(EXPERT_RATE), **RAMP)
    return runner(InnerTraining(TASK, LOPT, Objective(), expert=expert), data)


def positions(dataset, rate, num_steps=STEPS):
    """Gradient descent on the quadratic in float64, from where episodes begin."""
    x = np.asarray(TASK.init(jax.random.key(1))["x"], np.float64)
    centre = np.asarray(dataset.centre, np.float64)
    for _ in range(num_steps):
        x = x - rate * TASK.eigenvalues() * (x - centre)
    return x


@pytest.mark.parametrize(
    ("outer_step", "weight"), [(0, 1.0), (100, 1.0), (150, 0.75), (299, 0.005)]
)
def test_steps_are_blended_and_the_ratio_of_norms_is_charged(
    guided, data, outer_step, weight
):
    unrolled = guided(jnp.int32(outer_step))
    # Two SGDs blended are one SGD with the mean of their rates.
    rate = weight * EXPERT_RATE + (1 - weight) * RATE
    np.testing.assert_allclose(
        unrolled.episode.params["x"], positions(data, rate), rtol=1e-5
    )
    # Their steps are parallel, so it is the norms alone that differ.
    charged = np.asarray(unrolled.contributions - unrolled.losses)
    expected = weight * 0.3 * np.log(EXPERT_RATE / RATE)
    np.testing.assert_allclose(charged, np.full(STEPS, expected), rtol=2e-3)


def test_after_the_ramp_bits_are_those_of_a_run_without_expert(guided, data):
    plain = runner(InnerTraining(TASK, LOPT, Objective()), data)(jnp.int32(0))
    for outer_step in (300, 10**6):
        unrolled = guided(jnp.int32(outer_step))
        np.testing.assert_array_equal(
            unrolled.episode.params["x"], plain.episode.params["x"]
        )
        np.testing.assert_array_equal(unrolled.losses, plain.losses)
        np.testing.assert_array_equal(unrolled.contributions, plain.contributions)
    assert guided._cache_size() == 1
    assert not np.array_equal(guided(jnp.int32(299)).losses, plain.losses)


@pytest.mark.parametrize(
    "expert",
    [
        Adam(0.1, weight_decay=0.1),
        pytest.param(SGD(0.2, momentum=0.9), marks=pytest.mark.slow),
    ],
)
def test_at_full_weight_parameters_follow_the_expert(data, expert):
    followed = InnerTraining(TASK, LOPT, Objective(), expert=Expert(expert, **RAMP))
    alone = InnerTraining(TASK, expert, Objective())
    found = runner(followed, data)(jnp.int32(7)).episode.params["x"]
    wanted = runner(alone, data)(jnp.int32(7)).episode.params["x"]
    np.testing.assert_array_equal(found, wanted)


def test_an_expert_that_does_the_same_charges_nothing(data):
    expert = Expert(SGD(RATE), **RAMP)
    problem = InnerTraining(TASK, LOPT, Objective(), expert=expert)
    unrolled = runner(problem, data)(jnp.int32(0))
    charged = np.asarray(unrolled.contributions - unrolled.losses)
    np.testing.assert_allclose(charged, 0.0, atol=1e-6)


def test_where_both_members_follow_the_expert_imitation_alone_speaks(data):
    es = PES(num_pairs=3, chunk=3, truncation=3, lengths=EpisodeLengths(6, 6))
    expert = Expert(SGD(EXPERT_RATE), **RAMP)
    training = MetaTraining.on(
        TASK, LOPT, es, OuterOptimizer(), num_steps=5, expert=expert
    )
    problem, theta = training.groups[0].problem, LOPT.init(KEY)
    estimate, state = jax.jit(
        lambda step: estimated(
            es, problem, theta, es.init(problem, theta), data, KEY, outer_step=step
        )
    )(jnp.int32(0))
    # θ is the logarithm of the rate, so imitation is .3 · (ln(expert's rate) − θ); the
    # losses of both members are the same.
    noise = np.asarray(state.credit)[:, 0]
    found = estimate.terms["log_learning_rate"]
    np.testing.assert_allclose(found, -0.3 * noise**2 / es.sigma**2, rtol=1e-3)
    charged = float(estimate.metrics["objective"] - estimate.metrics["meta_loss"])
    assert charged == pytest.approx(0.3 * np.log(EXPERT_RATE / RATE), rel=0.01)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_cosine_and_norm_ratio_are_those_of_one_long_vector(scale):
    rng = np.random.RandomState(0)
    left = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    right = {"a": rng.normal(size=(3, 4)), "b": 10 * rng.normal(size=5)}
    x, y = (np.concatenate([t["a"].ravel(), t["b"]]) for t in (left, right))
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    ratio = np.log(np.linalg.norm(x) / np.linalg.norm(y))
    assert abs(cosine) > 0.05
    with jax.enable_x64(True):
        found = compared(
            jax.tree.map(lambda v: jnp.asarray(scale * v), left),
            jax.tree.map(lambda v: jnp.asarray(scale * v), right),
        )
        np.testing.assert_allclose(found, [cosine, ratio], rtol=1e-12)
    small = compared(
        jax.tree.map(lambda v: jnp.asarray(scale * v, jnp.float32), left),
        jax.tree.map(lambda v: jnp.asarray(scale * v, jnp.float32), right),
    )
    np.testing.assert_allclose(small, [cosine, ratio], rtol=1e-5, atol=2e-5)


def test_comparisons_without_an_answer_are_finite():
    one, zero = jnp.array([3.0, 4.0]), jnp.zeros(2)
    nan, inf = jnp.array([jnp.nan, 1.0]), jnp.array([jnp.inf, 1.0])
    cases = {
        (1.0, 0.0): [(zero, zero), (one, one)],
        (-1.0, 0.0): [(one, -one)],
        (0.0, -LARGEST_RATIO): [(zero, one)],
        (0.0, LARGEST_RATIO): [(one, zero)],
        (-1.0, LARGEST_RATIO): [(nan, one), (one, nan), (inf, one), (zero, nan)],
    }
    for expected, pairs in cases.items():
        for left, right in pairs:
            found = compared({"x": left}, {"x": right})
            np.testing.assert_allclose(found, expected, atol=1e-6)
    far = compared({"x": 1e-30 * one}, {"x": 1e30 * one})
    np.testing.assert_allclose(far, [1.0, -LARGEST_RATIO], atol=1e-6)


def test_the_ramp_is_whole_then_falls_in_a_line_and_ends():
    expert = Expert(full_until=5_000, over_at=50_000)
    steps = [0, 4_999, 5_000, 27_500, 45_500, 49_999, 50_000, 10**8]
    found = [float(expert.ramp(step)) for step in steps]
    expected = np.interp(steps, [5_000, 50_000], [1.0, 0.0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[5] > 0.0 == found[6]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": ScheduleFreeAdamW()}, "expert.optimizer = ScheduleFreeAdamW"),
        ({"optimizer": LOPT}, "optimizer = LearnableSGD.* must be of type Adam, SGD"),
        ({"full_until": -1}, "expert.full_until = -1 must be a whole number"),
        ({"full_until": 5, "over_at": 5}, "expert.over_at = 5 must be greater than"),
        ({"blend": 1.5}, "expert.blend = 1.5 must lie in"),
        ({"direction": -0.1}, "expert.direction = -0.1 must lie in"),
        ({"log_magnitude": float("nan")}, "log_magnitude = nan must be a number"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Expert(**fields)


@pytest.mark.optimized
@pytest.mark.parametrize("expert", [Adam(1e-2, weight_decay=0.1), Muon(0.02)])
def test_a_network_follows_its_expert_and_forgets_it(expert):
    task = ImageClassification(MLP(widths=(8, 8), base_width=8), batch_size=16)
    lopt = SmallFC(hidden_size=3, step_mult=0.01, rules=ADAM_LIKE)
    data = task.load_data()
    followed = InnerTraining(task, lopt, Objective(), expert=Expert(expert, **RAMP))
    run = runner(followed, data)
    at = {
        "over": (run(jnp.int32(300)), InnerTraining(task, lopt, Objective())),
        "full": (run(jnp.int32(0)), InnerTraining(task, expert, Objective())),
    }
    for name, (unrolled, problem) in at.items():
        wanted = runner(problem, data)(jnp.int32(0))
        for a, b in zip(
            jax.tree.leaves(unrolled.episode.params),
            jax.tree.leaves(wanted.episode.params),
            strict=True,
        ):
            if name == "over":
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.isfinite(unrolled.contributions).all()
